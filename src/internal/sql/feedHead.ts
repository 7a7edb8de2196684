/**
 * The head of the feed, and how it changed since a position. `feed.ts` and its head watcher read it.
 */
import type { Fragment } from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import type { Position } from "../../EventFeed.js"
import { StoreError } from "../../StoreError.js"
import type { LogTable } from "../store/pageBytes.js"
import { isAfter, isShown, kindOf } from "./feedConditions.js"
import type { HeadChange } from "./headWatcher.js"
import { isMissing, lost, lostIfPassed, lostMark } from "./lostPosition.js"
import type { CommandRunner } from "./pg/commandRunner.js"
import type { Command } from "./pg/driver.js"
import { executeCommand } from "./pg/execute.js"
import { columnsOf, eventPosition, positionOf } from "./position.js"

/** The reads of the head. Their texts are put together once, and are prepared. */
export const makeHeadReads = (log: LogTable, runner: CommandRunner) => {
  const selectedHead = runner.prepare(selectHead(log).compile()[0])
  const [changeText, compiledValues] = selectHeadChange(log).compile()
  const change = runner.prepare(changeText)
  const changeValues = (since: Position): ReadonlyArray<unknown> => {
    const [feedKey, position, time] = columnsOf(since)
    const values = new Map<unknown, string>([
      [sinceKey, feedKey],
      [sinceNumber, position],
      [sinceTime, time]
    ])
    return compiledValues.map((value) => values.get(value) ?? value)
  }
  const run = (command: Command) => executeCommand(runner, { operation: "EventFeed", phase: "reading" }, command)
  const head = Effect.flatMap(run({ ...selectedHead, values: [] }), ([row]): Effect.Effect<Position, StoreError> => {
    const [feed_key = null, position = null, event_time = null, isRestored] = row ?? []
    return isRestored === "true"
      ? Effect.fail(restored())
      : Effect.succeed(positionOf({ feed_key, position, event_time }))
  })
  return {
    /** The position of the last event that the feed shows. */
    head,
    /**
     * The events that the feed shows after a position, up to `changeWindow` of them. Where the log has lost the event at the position, the
     * change leads back to the head.
     */
    changeSince: (since: Position): Effect.Effect<HeadChange, StoreError> =>
      Effect.flatMap(
        run({ ...change, values: changeValues(since) }),
        ([row]): Effect.Effect<HeadChange, StoreError> => {
          const [
            feed_key = null,
            position = null,
            event_time = null,
            events,
            types = null,
            kinds = null,
            isRestored,
            mark
          ] = row ?? []
          if (isRestored === "true") return Effect.fail(restored())
          if (mark === lost || (mark === lostIfPassed && Number(events) > 0)) {
            return Effect.map(head, (position) => ({ head: position, contents: undefined, more: false, isLost: true }))
          }
          return Effect.succeed({
            head: Number(events ?? 0) === 0 ? since : positionOf({ feed_key, position, event_time }),
            contents: { types: namesOf(types), kinds: namesOf(kinds) },
            more: Number(events) === changeWindow
          })
        }
      )
  }
}

/**
 * Whether an event has the key of a transaction that has not begun. Such events were restored from another database.
 * In a log with a counter no key is that of a transaction.
 * The keys of the current transaction are excepted, because it sees its own events, whose keys may be above its snapshot.
 *
 * The highest key is read from the index. For `exists (… where feed_key >= …)` the planner scans the whole log while the table has no
 * statistics, or old ones, because it expects to find a row soon.
 */
export const hasFutureKeys = ({ feedOrder, schema, sql }: Omit<LogTable, "measuring">): Fragment =>
  feedOrder === "counter"
    ? sql.literal("false")
    : sql`coalesce((
    select feed_key >= pg_snapshot_xmax(pg_current_snapshot())
      and feed_key > coalesce(
        greatest(pg_current_xact_id_if_assigned(), nullif(current_setting('effect_maestro.feed_key', true), '')::xid8),
        '0'::xid8
      )
    from ${schema}.event_log order by feed_key desc, position desc limit 1
  ), false)`

// --- internal ---

/** How many events one statement reads for a change. Where more have come, the next poll goes on. */
const changeWindow = 5000

const selectHead = (log: LogTable) =>
  log.sql`select h.feed_key, h.position, h.event_time, (${hasFutureKeys(log)})::text as restored
    from (select 1) one left join lateral (
      select ${eventPosition(log.sql)} from ${log.schema}.event_log where ${isShown(log)}
      order by event_log.feed_key desc, event_log.position desc limit 1
    ) h on true`

/** Values that stand for the position that the change is since. */
const sinceKey = "since key"
const sinceNumber = "since number"
const sinceTime = "since time"
const since = `${sinceKey}-${sinceNumber}-${sinceTime}` as Position

const selectHeadChange = (log: LogTable) => {
  const { schema, sql } = log
  return sql`with change as materialized (
      select feed_key, position, timestamp, type, ${kindOf(sql)} as kind from ${schema}.event_log
      where ${isAfter(log, since)} and ${isShown(log)}
      order by feed_key, position limit ${changeWindow}
    )
    select h.feed_key, h.position, h.event_time, k.events, k.types, k.kinds,
      (${hasFutureKeys(log)})::text as restored,
      case when ${isMissing(log, since)} then ${lostMark(sql)} end as mark
    from (
      select count(*)::text as events, json_agg(distinct type)::text as types, json_agg(distinct kind)::text as kinds
      from change
    ) k left join lateral (
      select ${eventPosition(sql)} from change order by change.feed_key desc, change.position desc limit 1
    ) h on true`
}

const namesOf = (json: string | null): ReadonlyArray<string> => (json === null ? [] : JSON.parse(json))

const restored = (): StoreError =>
  new StoreError({
    reason: "Misconfigured",
    operation: "EventFeed",
    description:
      "the event log was restored from a dump into a database whose transaction ids start anew, so the feed can't go on: run SqlStore.repairAfterRestore"
  })
