/**
 * The failure of a subscription that is about a slice, while the store has several partitions of it, because partitions
 * are slices, too.
 */
import { StoreError } from "../../StoreError.js"

export const slicedPartitions = (name: string, stored: number): StoreError =>
  new StoreError({
    reason: "Misconfigured",
    operation: "Subscription",
    description: `subscription ${JSON.stringify(name)} has ${stored} partitions in the store, so its filter can't have a slice: run it without the slice until it has one partition`
  })
