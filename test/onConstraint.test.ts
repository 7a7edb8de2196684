/**
 * A violated constraint is a refusal of the command, for both kinds of projections, in commits, subscriptions and
 * rebuilds.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import { expect, it, layer } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import {
  Aggregate,
  type Event,
  Projection,
  Rebuild,
  SqlStore,
  StoreAdapter,
  StoreError,
  Subscription,
  Timestamp
} from "effect-maestro"
import { layerPg, layerPglite, uniqueName } from "./database.js"
import { eventually, start } from "./subscribers.js"

// Subscriptions wait for every open transaction of the server.
class Registered extends Schema.TaggedClass<Registered>()("Registered", { email: Schema.String, age: Schema.Int }) {}
class Renamed extends Schema.TaggedClass<Renamed>()("Renamed", { name: Schema.String }) {}
class Register extends Schema.TaggedClass<Register>()("Register", { email: Schema.String, age: Schema.Int }) {}
class EmailTaken extends Schema.TaggedError<EmailTaken>()("EmailTaken", { email: Schema.String }) {}
class TooYoung extends Schema.TaggedError<TooYoung>()("TooYoung", { age: Schema.Int }) {}

const adult = 30

const register = (email: string, age = adult) => new Register({ email, age })

type Refusals = Readonly<
  Record<string, (event: Registered, envelope: Event.Event) => EmailTaken | TooYoung | undefined>
>
type Refusal = EmailTaken | TooYoung
type Guests = Projection.Projection<Refusal | SqlError | StoreError.StoreError, SqlClient.SqlClient>

/** The ways to write a guest into a table. */
const kinds = {
  SQL: (table: string, onConstraint: Refusals): Guests =>
    Projection.makeSql({
      name: "guests",
      events: Registered,
      project: { Registered: (event, { id }, sql) => insert(sql, table, id, event) },
      onConstraint
    }),
  "an effect": (table: string, onConstraint: Refusals): Guests =>
    Projection.make({
      name: "guests",
      events: Registered,
      project: {
        Registered: (event, { id }) => Effect.flatMap(SqlClient.SqlClient, (sql) => insert(sql, table, id, event))
      },
      onConstraint
    })
}

const insert = (sql: SqlClient.SqlClient, table: string, id: string, { age, email }: Registered) =>
  sql`insert into ${sql(table)} (id, email, age) values (${id}, ${email}, ${age})`

const makeGuest = <E, R>(...projections: ReadonlyArray<Projection.Projection<E, R>>) =>
  Aggregate.make("Guest", {
    state: Schema.Struct({ email: Schema.NullOr(Schema.String) }),
    initialState: { email: null },
    events: Schema.Union(Registered, Renamed),
    commands: Register,
    decide: { Register: ({ age, email }) => Effect.succeed([new Registered({ age, email })]) },
    evolve: { Registered: (_state, { email }) => ({ email }), Renamed: (state) => state },
    projections
  })

/** A new table of guests. With `deferred` the e-mail is checked at COMMIT. */
const makeTable = (email = "unique") =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    const name = uniqueName("guests")
    yield* sql`create table ${sql(name)} (
      id text primary key,
      email text not null constraint ${sql(`${name}_one_email`)} ${sql.literal(email)},
      age int not null constraint ${sql(`${name}_adult`)} check (age >= 18)
    )`
    return {
      name,
      onConstraint: {
        [`${name}_one_email`]: ({ email }: Registered) => new EmailTaken({ email }),
        [`${name}_adult`]: ({ age }: Registered) => new TooYoung({ age })
      },
      emails: Effect.map(sql<{ email: string }>`select email from ${sql(name)} order by email`, (rows) =>
        rows.map(({ email }) => email)
      )
    }
  })

const newId = (): string => crypto.randomUUID()

const registered = (aggregateId: string, email: string, sequence = 1): Effect.Effect<Event.Event> =>
  Effect.map(
    Effect.flatMap(Timestamp.HybridClock, ({ now }) => now),
    (timestamp) => ({
      timestamp,
      aggregateId,
      sequence,
      type: "Registered",
      version: 1,
      body: { email, age: adult },
      metadata: {}
    })
  )

const stores = {
  Postgres: SqlStore.layer.pipe(Layer.provideMerge(layerPg()), Layer.orDie),
  PGlite: SqlStore.layer.pipe(Layer.provideMerge(layerPglite), Layer.orDie)
}

for (const [store, storeLayer] of Object.entries(stores)) {
  layer(storeLayer, { timeout: 60_000, excludeTestServices: true })(`a constraint on ${store}`, (it) => {
    for (const [kind, guestsOf] of Object.entries(kinds)) {
      for (const check of ["unique", "unique deferrable initially deferred"]) {
        it.scoped(`${check}, by ${kind}: a guest whose e-mail is taken is refused, and nothing is stored`, () =>
          Effect.gen(function* () {
            const { emails, name, onConstraint } = yield* makeTable(check)
            const Guest = makeGuest(guestsOf(name, onConstraint))
            const adapter = yield* StoreAdapter.StoreAdapter
            const [first, second] = [newId(), newId()]
            yield* Effect.gen(function* () {
              yield* Guest.evaluate(first, register("ada@example.com"))
              expect(yield* Effect.flip(Guest.evaluate(second, register("ada@example.com")))).toEqual(
                new EmailTaken({ email: "ada@example.com" })
              )
              expect(yield* Guest.fetch(second)).toEqual({ email: null })
              expect(yield* Effect.flip(Guest.evaluate(second, register("bob@example.com", 17)))).toEqual(
                new TooYoung({ age: 17 })
              )
              const { sequence } = yield* Guest.evaluate(second, register("bob@example.com"))
              expect(sequence).toBe(1)
            }).pipe(Effect.provide(yield* Layer.build(Guest.layer)))
            expect(yield* emails).toEqual(["ada@example.com", "bob@example.com"])
            expect(yield* adapter.getEvents(`Guest/${second}`, 2)).toEqual([])
          })
        )

        it.scoped(`${check}, by ${kind}: of concurrent commands with one e-mail exactly one is accepted`, () =>
          Effect.gen(function* () {
            const { emails, name, onConstraint } = yield* makeTable(check)
            const Guest = makeGuest(guestsOf(name, onConstraint))
            const outcomes = yield* Effect.forEach(
              Arr.range(1, 6),
              () => Effect.either(Guest.evaluate(newId(), register("ada@example.com"))),
              { concurrency: "unbounded" }
            ).pipe(Effect.provide(yield* Layer.build(Guest.layer)))
            expect(Arr.getLefts(outcomes)).toEqual(
              Arr.replicate(new EmailTaken({ email: "ada@example.com" }), outcomes.length - 1)
            )
            expect(yield* emails).toEqual(["ada@example.com"])
          })
        )
      }

      it.scoped(`by ${kind}: a transaction of the caller is usable after the refusal`, () =>
        Effect.gen(function* () {
          const { emails, name, onConstraint } = yield* makeTable()
          const Guest = makeGuest(guestsOf(name, onConstraint))
          const sql = yield* SqlClient.SqlClient
          const evaluate = (email: string) => Guest.evaluate(newId(), register(email))
          yield* Effect.gen(function* () {
            yield* evaluate("ada@example.com")
            expect(yield* Effect.flip(evaluate("ada@example.com"))).toBeInstanceOf(EmailTaken)
            yield* evaluate("bob@example.com")
          }).pipe(sql.withTransaction, Effect.provide(yield* Layer.build(Guest.layer)))
          expect(yield* emails).toEqual(["ada@example.com", "bob@example.com"])
        })
      )

      it.scoped(`by ${kind}: a rebuild ends with the refusal, for the name of the constraint in the table`, () =>
        Effect.gen(function* () {
          const { emails, name, onConstraint } = yield* makeTable()
          const adapter = yield* StoreAdapter.StoreAdapter
          const sql = yield* SqlClient.SqlClient
          yield* sql`delete from maestro.event_log`
          yield* adapter.commitEvents([yield* registered(newId(), "ada@example.com")])
          yield* adapter.commitEvents([yield* registered(newId(), "ada@example.com")])
          const rebuilding = Rebuild.run({
            name,
            projections: [Projection.of("all", guestsOf(name, onConstraint))],
            tables: [name]
          })
          expect(yield* Effect.flip(rebuilding)).toEqual(new EmailTaken({ email: "ada@example.com" }))
          expect(yield* emails).toEqual([])
          yield* Rebuild.abandon(name)
        })
      )

      it.scoped(`by ${kind}: a subscription fails at the event with the refusal, and so does its retry`, () =>
        Effect.gen(function* () {
          const { emails, name, onConstraint } = yield* makeTable()
          const adapter = yield* StoreAdapter.StoreAdapter
          const sql = yield* SqlClient.SqlClient
          yield* sql`delete from maestro.event_log`
          const [first, second, third] = [newId(), newId(), newId()]
          yield* adapter.commitEvents([yield* registered(first, "ada@example.com")])
          yield* adapter.commitEvents([yield* registered(second, "ada@example.com")])
          yield* adapter.commitEvents([yield* registered(third, "bob@example.com")])
          const subscription = Subscription.fromProjections(
            name,
            [Projection.of("all", guestsOf(name, onConstraint))],
            {
              onFailure: "park",
              retry: Schedule.recurs(1)
            }
          )
          yield* start(subscription)
          expect(yield* eventually(emails, (found) => found.length === 2)).toEqual([
            "ada@example.com",
            "bob@example.com"
          ])
          const [parked] = yield* eventually(Subscription.parked(name), (found) => found.length === 1)
          expect(parked).toMatchObject({ aggregateId: second, error: expect.stringContaining("EmailTaken") })
          expect(yield* Effect.flip(subscription.retryParked({ aggregateId: second, sequence: 1 }))).toBeInstanceOf(
            EmailTaken
          )
        })
      )
    }

    it.scoped("each kind of constraint is found by its name", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const name = uniqueName("kinds")
        yield* sql`create domain ${sql(`${name}_text`)} as text constraint ${sql(`${name}_domain`)} check (value <> 'bad')`
        yield* sql`create table ${sql(name)} (
          id int constraint ${sql(`${name}_key`)} primary key,
          parent int constraint ${sql(`${name}_parent`)} references ${sql(name)} (id),
          age int constraint ${sql(`${name}_adult`)} check (age >= 18),
          span int4range, label ${sql(`${name}_text`)}, code text,
          constraint ${sql(`${name}_overlap`)} exclude using gist (span with &&)
        )`
        yield* sql`create unique index ${sql(`${name}_code`)} on ${sql(name)} (lower(code))`
        const seed = sql`insert into ${sql(name)} values (1, null, 18, '[1,3)', 'good', 'A')`
        const violations: Readonly<Record<string, string>> = {
          key: `insert into ${name} (id) values (1)`,
          parent: `insert into ${name} (id, parent) values (2, 7)`,
          adult: `insert into ${name} (id, age) values (3, 17)`,
          overlap: `insert into ${name} (id, span) values (4, '[2,4)')`,
          domain: `insert into ${name} (id, label) values (5, 'bad')`,
          code: `insert into ${name} (id, code) values (6, 'a')`
        }
        yield* seed
        const Violating = Projection.makeSql({
          name: "violating",
          events: Renamed,
          project: { Renamed: (event, _envelope, sql) => sql.unsafe(violations[event.name] ?? "select 1") },
          onConstraint: Object.fromEntries(
            Object.keys(violations).map((kind) => [
              `${name}_${kind}`,
              (event: Renamed) => ({ _tag: kind, by: event.name })
            ])
          )
        })
        const adapter = yield* StoreAdapter.StoreAdapter
        for (const kind of Object.keys(violations)) {
          const event = { ...(yield* registered(newId(), "")), type: "Renamed", version: 1, body: { name: kind } }
          expect(yield* Effect.flip(adapter.commitAll([event], [Violating]))).toEqual({ _tag: kind, by: kind })
        }
      })
    )

    it.scoped("if a handler returns no tagged error, the violation is a StoreError that says so", () =>
      Effect.gen(function* () {
        const adapter = yield* StoreAdapter.StoreAdapter
        for (const check of ["unique", "unique deferrable initially deferred"]) {
          const { name } = yield* makeTable(check)
          const constraint = `${name}_one_email`
          // The compiler refuses such handlers, but untyped callers may have them.
          for (const [value, what] of [
            [Effect.fail(new EmailTaken({ email: "x" })), "an effect"],
            [Either.left(new EmailTaken({ email: "x" })), "an effect"],
            ["taken", "a value of type string"]
          ]) {
            const onConstraint: Refusals = {}
            Reflect.set(onConstraint, constraint, () => value)
            for (const guests of Object.values(kinds).map((guestsOf) => guestsOf(name, onConstraint))) {
              const email = newId()
              const id = newId()
              yield* adapter.commitAll([yield* registered(newId(), email)], [guests])
              const error = yield* Effect.flip(adapter.commitAll([yield* registered(id, email)], [guests]))
              expect(error).toMatchObject({ reason: "Constraint", projection: "guests", aggregateId: id, constraint })
              expect(String(error)).toContain(
                `constraint "${constraint}" is violated, and its handler in onConstraint returned ${what}; it must return a tagged error`
              )
              expect(yield* adapter.getEvents(id, 1)).toEqual([])
            }
          }
        }
      })
    )

    it.scoped("a constraint without a refusal is a StoreError that names projection, event, table and constraint", () =>
      Effect.gen(function* () {
        for (const check of ["unique", "unique deferrable initially deferred"]) {
          for (const guestsOf of [kinds.SQL, inStoreErrors]) {
            const { name } = yield* makeTable(check)
            const adapter = yield* StoreAdapter.StoreAdapter
            // A handler that returns nothing declares no refusal. A property of every object is no handler.
            const guests = guestsOf(name, {
              [`${name}_one_email`]: () => undefined,
              toString: () => new TooYoung({ age: 0 })
            })
            yield* adapter.commitAll([yield* registered(newId(), "ada@example.com")], [guests])
            const id = newId()
            const event = yield* registered(id, "ada@example.com")
            const error = yield* Effect.flip(adapter.commitAll([event], [guests]))
            expect(error).toMatchObject({
              _tag: "StoreError",
              reason: "Constraint",
              code: "23505",
              projection: "guests",
              aggregateId: id,
              sequence: 1,
              type: "Registered",
              table: name,
              constraint: `${name}_one_email`
            })
            expect(String(error)).toContain(`projection "guests", event Registered 1 of aggregate "${id}": `)
            for (const said of [`"${name}_one_email"`, `"${name}"`]) expect(String(error)).toContain(said)
            // The message does not have the value, which may be personal.
            expect(String(error)).not.toContain("ada@")
          }
        }
      })
    )

    it.scoped(
      "a constraint that fails at COMMIT is the refusal of the first projection and event that declare one",
      () =>
        Effect.gen(function* () {
          const { emails, name } = yield* makeTable("unique deferrable initially deferred")
          const writing = kinds.SQL(name, {})
          /** Writes nothing, and refuses events of aggregates whose ids begin with `at`. */
          const declaring = (by: string, at: string): Guests => ({
            ...Projection.toEffect(
              kinds.SQL(name, {
                [`${name}_one_email`]: (_event, { aggregateId }) =>
                  aggregateId.startsWith(at) ? new EmailTaken({ email: by }) : undefined
              })
            ),
            project: () => Effect.void
          })
          const adapter = yield* StoreAdapter.StoreAdapter
          const commit = (...projections: ReadonlyArray<Guests>) =>
            Effect.gen(function* () {
              const events = [
                yield* registered(`a${newId()}`, "ada@example.com"),
                yield* registered(`b${newId()}`, "ada@example.com")
              ]
              return yield* Effect.flip(adapter.commitAll(events, projections))
            })
          expect(
            yield* commit(writing, declaring("first", "c"), declaring("second", "b"), declaring("third", "a"))
          ).toEqual(new EmailTaken({ email: "second" }))
          // Several projections may have violated it, so only the constraint is known.
          const error = yield* commit(writing, declaring("first", "c"))
          expect(error).toMatchObject({ reason: "Constraint", constraint: `${name}_one_email`, table: name })
          expect(error).not.toHaveProperty("projection")
          expect(yield* commit(writing)).toMatchObject({ projection: "guests", reason: "Constraint" })
          expect(yield* emails).toEqual([])
        })
    )

    it.scoped("a new column that may not be null is named with projection and event", () =>
      Effect.gen(function* () {
        const { name, onConstraint } = yield* makeTable()
        const sql = yield* SqlClient.SqlClient
        yield* sql`alter table ${sql(name)} add column currency text not null`
        for (const guestsOf of [kinds.SQL, inStoreErrors]) {
          const Guest = makeGuest(guestsOf(name, onConstraint))
          const id = newId()
          const error = yield* Guest.evaluate(id, register("ada@example.com")).pipe(
            Effect.flip,
            Effect.provide(yield* Layer.build(Guest.layer))
          )
          expect(error).toMatchObject({ reason: "Constraint", code: "23502", column: "currency", table: name })
          expect(String(error)).toContain(
            `projection "guests", event Registered 1 of aggregate "Guest/${id}": null value in column "currency" of relation "${name}" `
          )
        }
        // An effect without `orStoreError` keeps its own failure.
        expect(
          yield* Effect.flip(
            Effect.flatMap(StoreAdapter.StoreAdapter, (adapter) =>
              Effect.flatMap(registered(newId(), "ada@example.com"), (event) =>
                Logger.withMinimumLogLevel(
                  adapter.commitAll([event], [kinds["an effect"](name, onConstraint)]),
                  LogLevel.None
                )
              )
            )
          )
        ).toMatchObject({ _tag: "SqlError" })
      })
    )

    it.scoped("a transient failure is retried, and a refusal is not", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const name = uniqueName("attempts")
        // A sequence also counts attempts that are rolled back.
        yield* sql`create sequence ${sql(name)}`
        yield* sql.unsafe(`create function ${name}_fail(state text, times int) returns void language plpgsql as $$ begin
          if nextval('${name}') <= times then
            raise exception 'told to' using errcode = state, constraint = '${name}_refused';
          end if;
        end $$`)
        const attempts = Effect.map(sql<{ n: string }>`select last_value as n from ${sql(name)}`, ([row]) =>
          Number(row?.n)
        )
        const failing = (state: string, times: number) => {
          const guests = Projection.makeSql({
            name: "failing",
            events: Registered,
            project: {
              Registered: (_event, _envelope, sql) => sql`select ${sql(`${name}_fail`)}(${state}::text, ${times}::int)`
            },
            onConstraint: { [`${name}_refused`]: ({ email }) => new EmailTaken({ email }) }
          })
          const Guest = makeGuest(guests)
          return Effect.flatMap(Layer.build(Guest.layer), (services) =>
            Effect.provide(Guest.evaluate(newId(), register("ada@example.com")), services)
          )
        }
        yield* failing("40001", 5)
        expect(yield* attempts).toBeGreaterThan(5)
        yield* sql`select setval(${name}, 1, false)`
        expect(yield* Effect.flip(failing("23505", 100))).toBeInstanceOf(EmailTaken)
        // Where events and statements are sent in one round trip, a second transaction finds the reason.
        expect(yield* attempts).toBe(store === "Postgres" ? 2 : 1)
      })
    )
  })
}

it.effect("a store's own failure for a constraint at COMMIT is the refusal that the projection declares", () =>
  Effect.gen(function* () {
    const violated = new StoreError.StoreError({
      reason: "Constraint",
      operation: "commitAll",
      description: "violated",
      constraint: "one_email"
    })
    const none = Effect.dieMessage("not called")
    const adapter = StoreAdapter.makeEncoded({
      name: "Refusing",
      append: () => none,
      appendWith: (_events, { project }) => Effect.zipRight(project, Effect.fail(violated)),
      putSnapshot: () => none,
      readEvents: () => none,
      readSnapshot: () => none
    })
    const guests: Projection.Projection<string> = {
      name: "guests",
      project: () => Effect.void,
      refusalOf: (constraint, { aggregateId }) => (constraint === "one_email" ? `${aggregateId} is refused` : undefined)
    }
    const events = [yield* registered("a", "ada@example.com")]
    expect(yield* Effect.flip(adapter.commitAll(events, [guests]))).toBe("a is refused")
    expect(
      yield* Effect.flip(adapter.commitAll(events, [{ name: "silent", project: () => Effect.void }]))
    ).toMatchObject({
      reason: "Constraint",
      projection: "silent",
      aggregateId: "a",
      sequence: 1,
      type: "Registered"
    })
  })
)

/** An effect whose failed statements are `StoreError`s. */
function inStoreErrors(
  table: string,
  onConstraint: Refusals
): Projection.Projection<Refusal | StoreError.StoreError, SqlClient.SqlClient> {
  return Projection.orStoreError(kinds["an effect"](table, onConstraint))
}
