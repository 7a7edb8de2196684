/** The rights that the guide gives the role of an application are all that it needs, on each kind of log. */
import { readFileSync } from "node:fs"
import * as SqlClient from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg"
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { EventFeed, Projection, SqlStore, StoreAdapter, Subscription } from "effect-maestro"
import { makeDatabase } from "./database.js"
import { aNode } from "./nodes.js"
import { Deposited, deposit, makeAccount, nodeAt } from "./projectionTables.js"
import { as, makeRole } from "./roles.js"
import { caughtUp, commitOf, newId, start } from "./subscribers.js"

const guide = readFileSync(new URL("../examples/application/README.md", import.meta.url), "utf8")

/** The statements of the guide, with another name of the role. */
const rightsOf = (role: string): ReadonlyArray<string> =>
  (/```sql\n([\s\S]*?)```/.exec(guide)?.[1] ?? "")
    .replaceAll(/\bshop\b/g, role)
    .trim()
    .split(";\n")

const sums = Projection.makeSql({
  name: "sums",
  events: Deposited,
  project: {
    Deposited: ({ amount }, { id }, sql) =>
      sql`insert into sums as s (id, amount) values (${id}, ${amount})
        on conflict (id) do update set amount = s.amount + excluded.amount`
  }
})

const accounts = [
  makeAccount([], "Plain"),
  makeAccount([sums], "BySql"),
  makeAccount([Projection.toEffect(sums)], "ByEffect")
]

/** Writes and reads the log in each way of the store. */
const work = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  for (const Account of accounts) {
    const node = yield* aNode(Account.layer)
    yield* Effect.gen(function* () {
      const [one, both, many] = [newId("one"), newId("both"), newId("many")]
      yield* deposit(Account, one)
      yield* deposit(Account, one)
      const concurrent = Arr.makeBy(20, (number) => deposit(Account, `${many}${number}`))
      yield* Effect.all(concurrent, { concurrency: "unbounded" })
      yield* sql.withTransaction(Effect.zipRight(deposit(Account, both), deposit(Account, both)))
      expect(yield* Account.fetch(both)).toBe(2)
    }).pipe(Effect.provide(node))
  }
  const store = yield* StoreAdapter.StoreAdapter
  const id = newId("stream")
  const [, , last] = yield* commitOf(id, 1, 3, "Happened")
  expect(yield* Effect.flip(commitOf(id, 3, 4, "Happened"))).toMatchObject({ _tag: "RetryCommand" })
  if (last !== undefined) yield* store.commitSnapshot({ ...last, body: { sum: 3 } })
  expect(yield* store.getSnapshot(id, 0)).toMatchObject({ _tag: "Some" })
  const following = Subscription.make(newId("following"), { partitions: 2, handle: () => Effect.void })
  yield* Effect.scoped(Effect.zipRight(start(following), caughtUp(following)))
  expect((yield* EventFeed.read({ limit: 5 })).events).toHaveLength(5)
})

it.scopedLive(
  "the rights of the guide are all that a role needs, on a table and on partitions, before and after a change",
  () =>
    Effect.gen(function* () {
      const url = yield* makeDatabase
      const owner = PgClient.layer({ url: Redacted.make(url), maxConnections: 2 })
      const trying = Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* sql`create table sums (id text primary key, amount int)`
        const [early, late] = yield* Effect.all([makeRole, makeRole])
        const giveRights = (role: string) => Effect.forEach(rightsOf(role), (statement) => sql.unsafe(statement))
        const works = (role: string) => Effect.scoped(Effect.provide(work, nodeAt(as(url, role), { migrate: false })))
        yield* SqlStore.migrate({ logPartitions: 1 })
        yield* sql`grant select, insert, update on sums to public`
        expect(rightsOf(early).length).toBeGreaterThan(1)
        yield* giveRights(early)
        yield* works(early)
        for (const partitions of [4, 2, 1]) {
          yield* SqlStore.partitionLog({ partitions })
          yield* works(early)
        }
        yield* SqlStore.partitionLog({ partitions: 3 })
        yield* giveRights(late)
        yield* works(late)
        yield* sql`drop schema maestro cascade`
        yield* SqlStore.migrate({ logPartitions: 4 })
        // These grants are also on each partition.
        yield* giveRights(late)
        yield* works(late)
        for (const partitions of [8, 1, 16]) {
          expect(yield* SqlStore.partitionLog({ partitions })).toBe(true)
          yield* works(late)
          yield* giveRights(late)
        }
      })
      yield* Effect.provide(Effect.scoped(trying), owner)
    }),
  60_000
)

it.scopedLive("usage on the schema and select on its tables are all that a role needs which only reads and waits", () =>
  Effect.gen(function* () {
    const url = yield* makeDatabase
    const trying = Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const role = yield* makeRole
      yield* SqlStore.migrate()
      yield* sql`grant usage on schema maestro to ${sql(role)}`
      yield* sql`grant select on all tables in schema maestro to ${sql(role)}`
      const id = newId("stream")
      const following = Subscription.make(newId("following"), { handle: () => Effect.void })
      const evaluating = yield* Layer.build(nodeAt(url))
      const [, last] = yield* Effect.provide(commitOf(id, 1, 2, "Happened"), evaluating)
      yield* Effect.provide(start(following), evaluating)
      const reading = Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        yield* Subscription.waitFor(following, { aggregateId: id, sequence: last?.sequence ?? 0 }, "10 seconds")
        expect(yield* store.getEvents(id, 1)).toHaveLength(2)
        expect((yield* EventFeed.read()).events).toHaveLength(2)
        expect(yield* Effect.flip(commitOf(id, 3, 1, "Happened"))).toMatchObject({ code: "42501" })
      })
      yield* Effect.provide(reading, nodeAt(as(url, role), { migrate: false }))
    })
    yield* Effect.provide(Effect.scoped(trying), PgClient.layer({ url: Redacted.make(url), maxConnections: 2 }))
  })
)

it.scopedLive("what a role without rights can't do fails by its name, and says that a right is lacking", () =>
  Effect.gen(function* () {
    const url = yield* makeDatabase
    const trying = Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const role = yield* makeRole
      yield* SqlStore.migrate()
      const ofRole = PgClient.layer({ url: Redacted.make(as(url, role)), maxConnections: 1 })
      const failures = (operations: ReadonlyArray<string>) =>
        Effect.gen(function* () {
          const fail = [
            Layer.build(SqlStore.layerWith({ migrate: false })),
            SqlStore.make({ migrate: false }),
            SqlStore.partitionLog({ partitions: 4 }),
            SqlStore.repairAfterRestore(),
            SqlStore.migrate(),
            Layer.build(SqlStore.layer)
          ]
          for (const [index, operation] of operations.entries()) {
            const error = yield* Effect.flip(fail[index] ?? Effect.void)
            expect(error).toMatchObject({ reason: "Misconfigured", operation, code: "42501" })
            expect(`${error}`).toContain("the role of the connection lacks a right")
          }
        })
      const operations = ["SqlStore", "SqlStore", "partitionLog", "repairAfterRestore", "migrate", "migrate"]
      yield* Effect.provide(failures(operations), ofRole)
      // The schema alone is not enough to look at its tables.
      yield* sql`grant usage on schema maestro to ${sql(role)}`
      yield* Effect.provide(failures(operations), ofRole)
    })
    yield* Effect.provide(Effect.scoped(trying), PgClient.layer({ url: Redacted.make(url), maxConnections: 2 }))
  })
)

// --- what it is made of ---
