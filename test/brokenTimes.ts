/** Feeds whose reads as of a time have one fault each. The contract must fail for each of them. */
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import { type EventFeed, Timestamp } from "effect-maestro"
import type { Breaking } from "./brokenFeeds.js"

type Read = EventFeed.EventFeedService["read"]

const withRead =
  (breaking: (read: Read) => Read): Breaking =>
  (ports) => ({ ...ports, feed: { ...ports.feed, read: breaking(ports.feed.read) } })

export const readsAsOfNow: Breaking = withRead((read) => (options) => read({ ...options, asOf: undefined }))

export const countsAsOfNow: Breaking = (ports) => ({
  ...ports,
  feed: { ...ports.feed, count: (options) => ports.feed.count({ ...options, asOf: undefined }) }
})

/** A page ends before the first event that was made later. */
export const endsAtTheFirstLaterEvent: Breaking = withRead(
  (read) => (options) =>
    Effect.map(read({ ...options, asOf: undefined }), (page) => {
      const { asOf } = options ?? {}
      const time = asOf === undefined ? Number.POSITIVE_INFINITY : DateTime.toEpochMillis(DateTime.unsafeMake(asOf))
      const end = page.events.findIndex(({ timestamp }) => Timestamp.toMillis(timestamp) > time)
      return end < 0 ? page : { ...page, events: page.events.slice(0, end), more: false }
    })
)

/** Events of the same millisecond are left out. */
export const leavesOutTheMillisecondOfATime: Breaking = withRead((read) => (options) => {
  const { asOf } = options ?? {}
  return read(asOf instanceof Date ? { ...options, asOf: new Date(asOf.getTime() - 1) } : options)
})
