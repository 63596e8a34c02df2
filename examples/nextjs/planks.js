// Prints the planks in colour: a tool for development, so kleur is a development dependency.
const kleur = require('kleur')
const planks = require('./planks.json')

for (const plank of planks) {
  console.log(kleur.yellow(plank))
}
