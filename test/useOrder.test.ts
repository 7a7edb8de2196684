/** The order of use, without a cache: compared with a list. */
import { expect, it } from "@effect/vitest"
import { addNewest, type Linked, makeUseOrder, remove } from "../src/internal/aggregate/useOrder.js"

interface Item extends Linked<Item> {
  readonly name: number
}

const seed = Math.floor(Math.random() * 2 ** 31)

/** Random numbers from 0 to a limit (exclusive), by mulberry32. */
const randomBelow = (() => {
  let state = seed
  return (limit: number): number => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * limit)
  }
})()

it(`items that are added, moved and removed at random stand in the order of a list (seed ${seed})`, () => {
  const order = makeUseOrder<Item>()
  const items = Array.from({ length: 8 }, (_, name): Item => ({ name, older: undefined, newer: undefined }))
  let model: ReadonlyArray<Item> = []
  for (let step = 0; step < 20_000; step++) {
    const item = items[randomBelow(items.length)]
    if (item === undefined) continue
    const without = model.filter((one) => one !== item)
    if (randomBelow(2) === 0) {
      addNewest(order, item)
      model = [...without, item]
    } else {
      remove(order, item)
      model = without
    }
    expect(namesFrom(order.oldest, "newer")).toEqual(model.map(({ name }) => name))
    expect(namesFrom(order.newest, "older")).toEqual(model.map(({ name }) => name).reverse())
  }
})

it("a removed item holds no other item", () => {
  const order = makeUseOrder<Item>()
  const items = Array.from({ length: 3 }, (_, name): Item => ({ name, older: undefined, newer: undefined }))
  for (const item of items) addNewest(order, item)
  for (const item of items) remove(order, item)
  expect(items.flatMap(({ newer, older }) => [newer, older]).every((item) => item === undefined)).toBe(true)
  expect(order).toEqual({ oldest: undefined, newest: undefined })
})

const namesFrom = (first: Item | undefined, next: "newer" | "older"): ReadonlyArray<number> => {
  const names: Array<number> = []
  for (let item = first; item !== undefined; item = item[next]) names.push(item.name)
  return names
}
