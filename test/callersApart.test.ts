/** No caller sees in its projections, or in their outcome, that other callers commit at the same time. */
import * as SqlClient from "@effect/sql/SqlClient"
import { describe, expect, it, type Vitest } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as FiberId from "effect/FiberId"
import * as FiberRef from "effect/FiberRef"
import * as Layer from "effect/Layer"
import { Aggregate, Event, MemoryStore, type Projection, StoreAdapter } from "effect-maestro"
import {
  asCaller,
  asOneByOne,
  callerOf,
  callers,
  Database,
  endings,
  listen,
  type Meeting,
  makeTable,
  makeTalk,
  meet,
  meetings,
  Own,
  onPglite,
  onPostgres,
  Say,
  type Scene,
  type Statements,
  saidBy,
  storedAt,
  styles,
  surroundings
} from "./callers.js"

// --- contexts ---

/** What a caller comes with to the projection of an aggregate, or of a commit. */
interface Arrival {
  readonly caller: string
  readonly place: string
  readonly evaluate: (id: string, command: Say) => Effect.Effect<unknown, unknown>
  readonly commit: (id: string) => Effect.Effect<unknown, unknown>
}

const arrivals: Readonly<Record<string, (arrival: Arrival) => Effect.Effect<unknown, unknown>>> = {
  "commands on one aggregate": ({ caller, evaluate, place }) => evaluate(place, new Say({ caller, times: 1 })),
  "commands on an aggregate each": ({ caller, evaluate, place }) =>
    evaluate(`${place} ${caller}`, new Say({ caller, times: 1 })),
  "commands of three events on one aggregate": ({ caller, evaluate, place }) =>
    evaluate(place, new Say({ caller, times: 3 })),
  "commands with an id on one aggregate": ({ caller, evaluate, place }) =>
    Aggregate.withCommandId(caller)(evaluate(place, new Say({ caller, times: 1 }))),
  "commits through the store": ({ caller, commit, place }) => commit(`${place} ${caller}`)
}

/** Has all callers arrive, each with what it has around it. */
const arrive = (
  { place, run }: Scene,
  arrival: (arrival: Arrival) => Effect.Effect<unknown, unknown>,
  projection: Projection.Projection,
  around: (caller: string, program: Effect.Effect<unknown, unknown>) => Effect.Effect<unknown, unknown>
) =>
  Effect.gen(function* () {
    const Talk = makeTalk([projection])
    const node = yield* Layer.build(Layer.fresh(Talk.layer))
    const store = yield* StoreAdapter.StoreAdapter
    return yield* run(
      callers.map((caller) => {
        const program = arrival({
          caller,
          place,
          evaluate: (id, command) => Effect.provide(Talk.evaluate(id, command), node),
          commit: (id) => Effect.flatMap(saidBy(caller, id), (events) => store.commitAll(events, [projection]))
        })
        return asCaller(caller, around(caller, program))
      })
    )
  })

const contexts = (it: Vitest.MethodsNonLive<StoreAdapter.StoreAdapter>) => {
  for (const [name, arrival] of Object.entries(arrivals)) {
    it.scoped(`${name}: a projection has its caller's context and FiberRefs, and what it sets its caller has`, () =>
      Effect.gen(function* () {
        const { afterwards, rows } = yield* asOneByOne((scene) =>
          Effect.gen(function* () {
            const [rows, afterwards]: [Array<string>, Array<string>] = [[], []]
            const looking: Projection.Projection = {
              name: "looking",
              project: (event) =>
                Effect.gen(function* () {
                  yield* Effect.yieldNow()
                  const seen = { ...(yield* surroundings), metadata: event.metadata.caller }
                  rows.push(`${callerOf(event)}: ${JSON.stringify(seen)}`)
                  yield* FiberRef.update(Own, (own) => `${own}, projected`)
                })
            }
            const outcomes = yield* arrive(scene, arrival, looking, (caller, program) =>
              Effect.zipLeft(
                program,
                Effect.map(FiberRef.get(Own), (own) => afterwards.push(`${caller}: ${own}`))
              )
            )
            return { afterwards: afterwards.sort(), outcomes, rows: rows.sort() }
          })
        )
        const times = rows.length / callers.length
        const later = (caller: string, time: number) => caller + ", projected".repeat(time)
        expect(afterwards).toEqual(callers.map((caller) => `${caller}: ${later(caller, times)}`))
        const seen = callers.flatMap((caller) =>
          Arr.makeBy(times, (time) => {
            const seen = { tenant: caller, own: later(caller, time), annotation: caller, trace: caller }
            return `${caller}: ${JSON.stringify({ ...seen, metadata: caller })}`
          })
        )
        expect(rows).toEqual(seen.sort())
      })
    )
  }

  for (const name of ["commands on one aggregate", "commands on an aggregate each", "commits through the store"]) {
    it.scoped(`${name}: a projection runs in its caller's fiber`, () =>
      Effect.gen(function* () {
        const { rows } = yield* asOneByOne((scene) =>
          Effect.gen(function* () {
            const fibers = new Map<string, string>()
            const rows: Array<string> = []
            const looking: Projection.Projection = {
              name: "looking",
              project: (event) =>
                Effect.map(Effect.fiberId, (id) => {
                  const isCallers = fibers.get(callerOf(event)) === FiberId.threadName(id)
                  rows.push(`${callerOf(event)}: in ${isCallers ? "its caller's" : "another"} fiber`)
                })
            }
            const outcomes = yield* arrive(scene, arrivals[name] ?? (() => Effect.void), looking, (caller, program) =>
              Effect.flatMap(Effect.fiberId, (id) => {
                fibers.set(caller, FiberId.threadName(id))
                return program
              })
            )
            return { outcomes, rows: rows.sort() }
          })
        )
        expect(rows).toEqual(callers.map((caller) => `${caller}: in its caller's fiber`))
      })
    )
  }
}

// --- failures, and what projections commit elsewhere ---

class Refused extends Data.TaggedError("Refused")<{ readonly caller: string }> {}

/** How the projection of every fourth caller ends, and the outcome of its command. */
const mishaps = [
  {
    end: (caller: string) => Effect.fail(new Refused({ caller })),
    outcome: (caller: string) => `fails with Refused ${caller}`
  },
  {
    end: (caller: string) => Effect.die(new Error(`of ${caller}`)),
    outcome: (caller: string) => `dies with Error: of ${caller}`
  },
  { end: () => Effect.interrupt, outcome: () => "is interrupted" }
] as const

const failures = (it: Vitest.MethodsNonLive<StoreAdapter.StoreAdapter>) => {
  for (const [meeting, idOf] of Object.entries(meetings)) {
    it.scoped(`${meeting}: a projection that fails, dies or interrupts itself does so for its caller alone`, () =>
      Effect.gen(function* () {
        const { outcomes, stored } = yield* asOneByOne((scene) =>
          Effect.gen(function* () {
            const ending: Projection.Projection<unknown> = {
              name: "ending",
              project: (event) =>
                Effect.zipRight(Effect.yieldNow(), oneOf(mishaps, callerOf(event))?.end(callerOf(event)) ?? Effect.void)
            }
            return { outcomes: yield* meet(scene, idOf, [ending]), stored: yield* storedAt(scene, idOf) }
          })
        )
        expect(outcomes).toEqual(callers.map((caller) => oneOf(mishaps, caller)?.outcome(caller) ?? "succeeds"))
        expect(stored).toEqual(callers.filter((caller) => !isFourth(caller)))
      })
    )

    it.scoped(`${meeting}: a projection that loads aggregates finds no event of another's that is not committed`, () =>
      Effect.gen(function* () {
        const { seen } = yield* asOneByOne((scene) =>
          Effect.gen(function* () {
            const Other = makeTalk([])
            const other = yield* Layer.build(Layer.fresh(Other.layer))
            const otherOf = (caller: string) => `${scene.place} other of ${caller}`
            const seen: Array<string> = []
            const loading: Projection.Projection<unknown> = {
              name: "loading",
              project: (event) =>
                Effect.gen(function* () {
                  const caller = callerOf(event)
                  yield* Other.evaluate(otherOf(caller), new Say({ caller, times: 1 }))
                  // Of its own aggregate it sees what is stored before it, and its own event.
                  const own = yield* Other.fetch(Event.identityOf(event.aggregateId).id)
                  if (own !== event.sequence) seen.push(`${caller}: ${own} events at ${event.sequence}`)
                  for (const failing of callers) {
                    if (!isFourth(failing) || failing === caller) continue
                    const counts = [yield* Other.fetch(otherOf(failing)), yield* Other.get(otherOf(failing))]
                    if (counts.some((count) => count > 0)) seen.push(`${caller}: ${counts} events of ${failing}`)
                  }
                  if (isFourth(caller)) return yield* new Refused({ caller })
                }).pipe(Effect.provide(other))
            }
            return { outcomes: yield* meet(scene, idOf, [loading]), seen }
          })
        )
        expect(seen).toEqual([])
      })
    )
  }
}

// --- rows and settings ---

/** What projections send, and what their table contains afterwards, whichever style they have. */
interface Sentence {
  readonly name: string
  /** What is there before: constraints, functions and triggers of the projection's table. */
  readonly before?: (sql: SqlClient.SqlClient, table: string) => Effect.Effect<unknown, unknown>
  readonly send: (sql: SqlClient.SqlClient, event: Event.Event, table: string) => ReturnType<Statements>
  /** The value in the row of a caller; without one its commit fails. */
  readonly valueOf: (caller: string) => string | undefined
  /** Which failure that is. */
  readonly failure?: string
}

const sentences: ReadonlyArray<Sentence> = [
  {
    name: "a temporary table has the rows of its caller alone",
    send: (sql, event, table) => [
      sql`create temporary table if not exists mine (caller text) on commit drop`,
      sql`insert into mine values (${callerOf(event)})`,
      sql`insert into ${sql(table)} select ${callerOf(event)}, count(*)::text from mine`
    ],
    valueOf: () => "1"
  },
  {
    name: "what a projection sets for its transaction, no other has",
    send: (sql, event, table) => [
      sql`insert into ${sql(table)} values (${callerOf(event)}, ${settingOf(sql, "callers.tenant")})`,
      sql`select set_config('callers.tenant', ${callerOf(event)}, true)`
    ],
    valueOf: () => "none"
  },
  {
    name: "what a trigger sets for its transaction, no other has",
    before: (sql, table) =>
      Effect.zipRight(
        sql.unsafe(`create or replace function set_tenant() returns trigger language plpgsql as $$ begin
          new.value := coalesce(nullif(current_setting('callers.tenant', true), ''), 'none');
          perform set_config('callers.tenant', new.caller, true);
          return new;
        end $$`),
        sql.unsafe(`create trigger tenant before insert on ${table} for each row execute function set_tenant()`)
      ),
    send: (sql, event, table) => [sql`insert into ${sql(table)} values (${callerOf(event)}, 'not set')`],
    valueOf: () => "none"
  },
  {
    name: "time limits are those of the caller's own transaction",
    send: (sql, event, table) => [
      sql`insert into ${sql(table)} values
        (${callerOf(event)}, ${settingOf(sql, "lock_timeout")} || ' ' || ${settingOf(sql, "statement_timeout")})`,
      ...(isFourth(callerOf(event))
        ? [sql`set local lock_timeout = '7s'`, sql`set local statement_timeout = '9s'`]
        : [])
    ],
    valueOf: () => "0 0"
  },
  {
    name: "advisory locks are those of the caller alone",
    send: (sql, event, table) => [
      sql`select pg_advisory_xact_lock(hashtext(${callerOf(event)}))`,
      sql`insert into ${sql(table)} select ${callerOf(event)}, count(*)::text from pg_locks
        where locktype = 'advisory' and pid = pg_backend_pid()`
    ],
    valueOf: () => "1"
  },
  {
    name: "a view of the log has no event that comes after, and none that another writes in the same transaction",
    before: (sql, table) =>
      sql.unsafe(`create view ${table}_view as
        select aggregate_id, sequence, body ->> 'caller' as caller, xmin as writer from maestro.event_log`),
    send: (sql, event, table) => [
      sql`insert into ${sql(table)} select ${callerOf(event)}, count(*)::text from ${sql(`${table}_view`)}
        where aggregate_id = ${event.aggregateId} and sequence > ${event.sequence}
          or caller <> ${callerOf(event)} and writer = pg_current_xact_id()::xid`
    ],
    valueOf: () => "0"
  },
  {
    name: "rows of two callers do not make up for each other in a constraint that is checked at COMMIT",
    before: (sql, table) =>
      Effect.zipRight(
        sql.unsafe(`alter table ${table} add unique (caller)`),
        sql.unsafe(
          `alter table ${table} add foreign key (value) references ${table} (caller) deferrable initially deferred`
        )
      ),
    send: (sql, event, table) => [
      sql`insert into ${sql(table)} values (${callerOf(event)}, ${partnerOf(callerOf(event))})`
    ],
    valueOf: (caller) => (partnerOf(caller) === caller ? caller : undefined),
    failure: "fails with StoreError Constraint 23503"
  },
  {
    name: "a statement that fails does so for its caller alone",
    send: (sql, event, table) => [
      sql`insert into ${sql(table)} values (${callerOf(event)}, 'done')`,
      ...(isFourth(callerOf(event)) ? [sql`select 1 / ${0}::int`] : [])
    ],
    valueOf: (caller) => (isFourth(caller) ? undefined : "done"),
    failure: "fails with StoreError Unknown 22012"
  }
]

const rowsAndSettings = (
  it: Vitest.MethodsNonLive<StoreAdapter.StoreAdapter | SqlClient.SqlClient>,
  by: Partial<typeof styles>,
  where: Readonly<Record<string, Meeting>>
) => {
  for (const [style, projectionOf] of Object.entries(by)) {
    describe(`projections by ${style}`, () => {
      for (const [meeting, idOf] of Object.entries(where)) {
        for (const { before, failure = "fails", name, send, valueOf } of sentences) {
          it.scoped(`${meeting}: ${name}`, () =>
            Effect.gen(function* () {
              const sql = yield* SqlClient.SqlClient
              const { outcomes, rows, stored } = yield* asOneByOne((scene) =>
                Effect.gen(function* () {
                  const table = yield* makeTable("caller text, value text")
                  if (before !== undefined) yield* before(sql, table.name)
                  const projection = projectionOf((sql, event) => send(sql, event, table.name))
                  const outcomes = yield* meet(scene, idOf, [projection])
                  return { outcomes, rows: yield* table.rows, stored: yield* storedAt(scene, idOf) }
                })
              )
              const succeeding = callers.filter((caller) => valueOf(caller) !== undefined)
              expect(outcomes).toEqual(callers.map((caller) => (succeeding.includes(caller) ? "succeeds" : failure)))
              expect(rows).toEqual(succeeding.map((caller) => `${caller}: ${valueOf(caller)}`))
              expect(stored).toEqual(succeeding)
            })
          )
        }

        it.scoped(`${meeting}: a projection that ends the transaction has its commit fail, and no other`, () =>
          Effect.gen(function* () {
            const { outcomes, rows, stored } = yield* asOneByOne((scene) =>
              Effect.gen(function* () {
                const table = yield* makeTable("caller text, value text")
                const projection = projectionOf((sql, event) => {
                  const ending = oneOf(endings, callerOf(event))
                  const row = sql`insert into ${sql(table.name)} values (${callerOf(event)}, 'done')`
                  return ending === undefined ? [row] : [row, sql.unsafe(ending)]
                })
                const outcomes = yield* meet(scene, idOf, [projection])
                // What a projection has stored by a COMMIT of its own, stays.
                const isOthers = (line: string) => !callers.filter(isFourth).some((caller) => line.startsWith(caller))
                return {
                  outcomes,
                  rows: (yield* table.rows).filter(isOthers),
                  stored: (yield* storedAt(scene, idOf)).filter(isOthers)
                }
              })
            )
            const others = callers.filter((caller) => !isFourth(caller))
            expect(outcomes).toEqual(
              callers.map((caller) => (isFourth(caller) ? "fails with StoreError Unknown" : "succeeds"))
            )
            expect(rows).toEqual(others.map((caller) => `${caller}: done`))
            expect(stored).toEqual(others)
          })
        )
      }
    })
  }
}

const notifications = (it: Vitest.MethodsNonLive<StoreAdapter.StoreAdapter | SqlClient.SqlClient | Database>) => {
  for (const [style, projectionOf] of Object.entries(styles)) {
    for (const [meeting, idOf] of Object.entries(meetings)) {
      it.scoped(`${meeting}: each of 96 commits sends its own, all of one payload, by ${style}`, () =>
        Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          const url = yield* Database
          const many = Arr.range(1, 4).flatMap((time) => callers.map((caller) => `${caller}, ${time}`))
          const received = yield* asOneByOne((scene) =>
            Effect.gen(function* () {
              const listener = yield* listen(url)
              yield* meet(scene, idOf, [projectionOf((sql) => [sql`select pg_notify('callers', 'equal')`])], many)
              yield* sql`select pg_notify('callers', 'end')`
              return yield* listener.untilEnd
            })
          )
          expect(received).toBe(many.length)
        })
      )
    }
  }
}

it.layer(MemoryStore.layer)("Callers on MemoryStore", (it) => {
  contexts(it)
  failures(it)
})

it.layer(onPglite, { timeout: 60_000 })("Callers on PGlite", (it) => {
  contexts(it)
  failures(it)
  // On its one connection commits to different aggregates never meet, and statements take the way of an effect.
  rowsAndSettings(it, { "an effect": styles["an effect"] }, { "on one aggregate": meetings["on one aggregate"] })
})

it.layer(onPostgres, { timeout: 60_000 })("Callers on Postgres", (it) => {
  contexts(it)
  failures(it)
  rowsAndSettings(it, styles, meetings)
  notifications(it)
})

// --- what the cases are made of ---

const settingOf = (sql: SqlClient.SqlClient, name: string) =>
  sql`coalesce(nullif(current_setting(${name}, true), ''), 'none')`

const indexOf = (caller: string): number => Number(caller.slice(-2))

const isFourth = (caller: string): boolean => indexOf(caller) % 4 === 3

/** Gives each fourth caller one of the things, in turn. */
const oneOf = <A>(things: ReadonlyArray<A>, caller: string): A | undefined =>
  isFourth(caller) ? things[Math.floor(indexOf(caller) / 4) % things.length] : undefined

/** Callers 4 and 5, and 16 and 17, refer to each other, all others to themselves. */
const partnerOf = (caller: string): string => {
  const partner = { 4: 5, 5: 4, 16: 17, 17: 16 }[indexOf(caller)]
  return partner === undefined ? caller : (callers[partner] ?? caller)
}
