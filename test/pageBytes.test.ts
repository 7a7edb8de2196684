/**
 * Pages of large events: processes with little memory read all events, and every read by pages shows the same events.
 */
import { execFile } from "node:child_process"
import { promisify } from "node:util"
import * as SqlClient from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg"
import { expect, it, layer } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import { type Event, EventFeed, SqlStore, StoreAdapter } from "effect-maestro"
import { inject } from "vitest"
import { maxPageBytes } from "../src/internal/store/pageBytes.js"
import { streamReaderOf } from "../src/internal/store/streamReader.js"
import { makeDatabase } from "./database.js"
import { useProgram } from "./program.js"
import { event, newId, stores } from "./subscribers.js"

// --- little memory ---

for (const [what, count, body] of [
  ["30 events of 2 MB", 30, "json_build_object('_tag', 'Grew', 'text', n || large.text)"],
  ["20 000 small events", 20_000, "json_build_object('_tag', 'Grew', 'text', 'small')"]
] as const) {
  // Small events only make more pages, so they are tried in the long run.
  it.scoped.skipIf(count > 1000 && inject("runs") <= 100)(
    `a process with a heap of 84 MB fetches, streams, follows and rebuilds ${what}`,
    () =>
      Effect.gen(function* () {
        const url = yield* makeDatabase
        yield* Effect.gen(function* () {
          yield* SqlStore.migrate()
          const sql = yield* SqlClient.SqlClient
          yield* sql`create table counted (id text primary key, events int not null)`
          // One half of each body can be compressed, and the other half can't.
          yield* sql`with large as (
              select repeat('x', 1000000) || string_agg(md5(random()::text), '') as text from generate_series(1, 31250)
            )
            insert into maestro.event_log (position, aggregate_id, sequence, type, body, metadata, timestamp)
            select n, 'one', n, 'Grew', ${sql.literal(body)}, '{"aggregate": "Large"}', uuidv7()
            from generate_series(1, ${count}::int) n, large`
        }).pipe(Effect.provide(PgClient.layer({ url: Redacted.make(url) })))
        const { stdout } = yield* Effect.promise((signal) =>
          promisify(execFile)(
            process.execPath,
            ["--max-old-space-size=84", program(), JSON.stringify({ url, count })],
            { signal, env: { ...process.env, NODE_OPTIONS: "" } }
          )
        )
        expect(stdout.trim().split("\n")).toEqual([
          `fetch ${count}`,
          `stream ${count}`,
          `subscription ${count}`,
          `rebuild ${count}`,
          `table ${count}`
        ])
      }),
    60_000
  )
}

const program = useProgram(`
import * as SqlClient from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg"
import * as Effect from "effect/Effect"
import * as Deferred from "effect/Deferred"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { Aggregate, EventFeed, Projection, Rebuild, SqlStore, Subscription } from "effect-maestro"
const { count, url } = JSON.parse(process.argv[2])
class Grew extends Schema.TaggedClass()("Grew", { text: Schema.String }) {}
const Large = Aggregate.make("Large", {
  streams: "plain",
  state: Schema.Number,
  initialState: 0,
  events: Grew,
  commands: Grew,
  decide: { Grew: (command) => Effect.succeed([command]) },
  evolve: { Grew: (count) => count + 1 }
})
const Counted = Projection.make({
  name: "counted",
  events: Grew,
  project: {
    Grew: (_, { sequence }) =>
      sequence % 10_000 === 0 || sequence === count
        ? Effect.flatMap(
            SqlClient.SqlClient,
            (sql) => sql\`insert into counted values ('one', \${sequence}) on conflict (id) do update set events = excluded.events\`
          )
        : Effect.void
  }
})
const say = (what, value) => Effect.sync(() => console.log(what, value))
Effect.gen(function* () {
  yield* say("fetch", yield* Large.fetch("one"))
  yield* say("stream", yield* Stream.runCount(EventFeed.streamStored()))
  let seen = 0
  const all = yield* Deferred.make()
  const follower = Subscription.make("follower", {
    handle: () => (++seen === count ? Deferred.succeed(all, undefined) : Effect.void)
  })
  yield* Effect.raceFirst(follower.run, Deferred.await(all))
  yield* say("subscription", seen)
  yield* say("rebuild", yield* Rebuild.run({ name: "counted", projections: [Projection.of("all", Counted)], tables: ["counted"] }))
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql\`select events from counted\`
  yield* say("table", row.events)
}).pipe(
  Effect.provide(
    Large.layer.pipe(
      Layer.provideMerge(SqlStore.layer),
      Layer.provideMerge(PgClient.layer({ url: Redacted.make(url), maxConnections: 6 }))
    )
  ),
  Effect.runPromise
)
`)

// --- pages ---

const sizes = [2, 300, 3000, 9000, 60_000, 900_000, 2_100_000, 4_100_000]

/** A text of that length, which can be compressed or not. */
const textOf = (length: number, isCompressible: boolean): string =>
  isCompressible
    ? "compressible ".repeat(Math.ceil(length / 13)).slice(0, length)
    : Array.from({ length: Math.ceil(length / 32) }, () => crypto.randomUUID().replaceAll("-", ""))
        .join("")
        .slice(0, length)

const sizeOf = ({ body, metadata }: Event.Event): number =>
  Buffer.byteLength(JSON.stringify(body)) + Buffer.byteLength(JSON.stringify(metadata))

const isPage = (events: ReadonlyArray<Event.Event>): boolean =>
  events.length <= 1 || events.reduce((sum, one) => sum + sizeOf(one), 0) <= maxPageBytes * 1.01

for (const [name, store] of stores) {
  layer(store, { excludeTestServices: true, timeout: 60_000 })(name, (it) => {
    it.effect("pages of any limit show large and small events once each, in their order", () =>
      Effect.gen(function* () {
        const seed = Math.floor(Math.random() * 2 ** 31)
        const [after, adapter] = [yield* EventFeed.head, yield* StoreAdapter.StoreAdapter]
        const [id, type] = [newId("a"), newId("t")]
        const draw = Effect.withRandom(
          Effect.forEach(Arr.range(1, 16), (sequence) =>
            Effect.gen(function* () {
              const [size, isCompressible, inMetadata] = [
                sizes[yield* Random.nextIntBetween(0, sizes.length)] ?? 0,
                yield* Random.nextBoolean,
                yield* Random.next
              ]
              const large = { text: textOf(size, isCompressible) }
              const one = yield* event(id, sequence, { type })
              return inMetadata < 0.2 ? { ...one, metadata: large } : { ...one, body: large }
            })
          ),
          Random.make(seed)
        )
        const events = yield* draw
        for (const one of events) yield* adapter.commitEvents([one])
        const expected = events.map((one) => [one.sequence, sizeOf(one)])
        const expectPages = (pages: ReadonlyArray<ReadonlyArray<Event.Event>>, what: string) => {
          expect(
            pages.flat().map((one) => [one.sequence, sizeOf(one)]),
            `${what}, seed ${seed}`
          ).toEqual(expected)
          expect(pages.every(isPage), `${what}, seed ${seed}`).toBe(true)
        }
        yield* Stream.runDrain(Stream.take(EventFeed.stream({ after, filter: { types: [type] } }), 16))
        for (const limit of [7, 1000]) {
          for (const filter of [undefined, { types: [type] }]) {
            const pages = yield* Stream.runCollect(
              Stream.paginateEffect(after, (from) =>
                Effect.map(
                  EventFeed.read({ after: from, limit, filter }),
                  ({ events, more, position }) => [events, more ? Option.some(position) : Option.none()] as const
                )
              )
            )
            const own = Arr.fromIterable(pages).map((page) => page.filter((one) => one.type === type))
            expectPages(own, `the feed by ${limit}`)
          }
        }
        const reader = streamReaderOf(adapter)
        for (const limit of [500, 2500]) {
          const pages = yield* Stream.runCollect(
            Stream.paginateEffect(1, (from) =>
              Effect.map(
                reader.page(id, from, limit),
                (page) => [page.events(), Option.map(Option.fromNullable(page.moreAfter), (last) => last + 1)] as const
              )
            )
          )
          expectPages(Arr.fromIterable(pages), `the stream by ${limit}`)
        }
        const first = yield* reader.fromSnapshot(id, 14, 500)
        const page = first.events()
        expect(page.map(({ sequence }) => sequence)).toEqual(Arr.range(1, page.length))
        expect(isPage(page)).toBe(true)
        if (page.length < 14) expect(first.moreAfter).toBe(page.length)
      })
    )
  })
}
