/**
 * A list in the order of the last use. `stateCache.ts` keeps the entries in it that no command uses.
 *
 * It is a linked list, because every command takes its entry out and puts it back. In a `Map` each removal leaves a gap,
 * and the table is copied again and again to close the gaps.
 */

/** An item of a list. The list alone writes these fields. */
export interface Linked<Item> {
  older: Item | undefined
  newer: Item | undefined
}

export interface UseOrder<Item> {
  oldest: Item | undefined
  newest: Item | undefined
}

export const makeUseOrder = <Item>(): UseOrder<Item> => ({ oldest: undefined, newest: undefined })

/** Adds an item, or moves it to the end. */
export const addNewest = <Item extends Linked<Item>>(order: UseOrder<Item>, item: Item): void => {
  remove(order, item)
  const { newest } = order
  item.older = newest
  if (newest === undefined) order.oldest = item
  else newest.newer = item
  order.newest = item
}

/** Removes an item, if it is in the list. */
export const remove = <Item extends Linked<Item>>(order: UseOrder<Item>, item: Item): void => {
  const { newer, older } = item
  if (older === undefined && order.oldest !== item) return
  if (older === undefined) order.oldest = newer
  else older.newer = newer
  if (newer === undefined) order.newest = older
  else newer.older = older
  item.older = undefined
  item.newer = undefined
}
