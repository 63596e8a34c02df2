import planks from '../../planks.json'

export default function handler(request, response) {
  response.status(200).json(planks)
}
