import planks from '../planks.json'

export default function Home({ length }) {
  return (
    <main>
      <h1>Overlapping planks</h1>
      <ol>
        {planks.map((plank) => (
          <li key={plank}>{plank}</li>
        ))}
      </ol>
      <p>{length} in all</p>
    </main>
  )
}

export function getStaticProps() {
  return { props: { length: planks.length } }
}
