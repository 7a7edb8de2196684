/**
 * Tables built beside others of the same name, in a schema of their own that comes first in the search path, and put in their place in
 * the end.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import { StoreError } from "../StoreError.js"
import { fromSqlError } from "./sqlError.js"

/** A table as it stands, and its double. */
export interface Shadowed {
  /** Of the table that is in use, quoted: `"public"."balances"`. */
  readonly live: string
  readonly liveSchema: string
  /** Quoted, without a schema. */
  readonly name: string
}

/** Makes the doubles, unless they are there already, and answers what they are doubles of. */
export const makeShadows = <E, R>(
  sql: SqlClient.SqlClient,
  shadow: string,
  tables: ReadonlyArray<string>,
  create: Effect.Effect<unknown, E, R> | undefined
): Effect.Effect<ReadonlyArray<Shadowed>, E | StoreError, R> =>
  Effect.gen(function* () {
    const found = yield* Effect.forEach(tables, (table) => find(sql, table))
    yield* Effect.forEach(found, ({ live }) => refuseDependents(sql, live))
    const doubles = Effect.map(
      run(sql<{ name: string }>`select quote_ident(tablename) as name from pg_tables where schemaname = ${shadow}`),
      (made) => new Set(made.map(({ name }) => name))
    )
    const begun = (yield* run(sql`select 1 from pg_namespace where nspname = ${shadow}`)).length > 0
    if (!begun) {
      yield* run(sql`create schema ${identifier(sql, shadow)}`)
      if (create === undefined) {
        for (const { live, name } of found) {
          yield* run(
            sql`create table ${identifier(sql, shadow)}.${sql.literal(name)} (like ${sql.literal(live)} including all)`
          )
          // A projection knows a violated constraint by its name, and `like` gives others. Two schemas may have the same name twice.
          if (found.every(({ liveSchema }) => liveSchema === found[0]?.liveSchema)) {
            yield* execute(sql, renamingIndexes(shadow, yield* indexNames(sql, live, `${quoted(shadow)}.${name}`)))
          }
        }
      } else {
        yield* inFront(sql, shadow)
        yield* create
      }
    }
    const made = yield* doubles
    const missing = found.find(({ name }) => !made.has(name))
    if (missing !== undefined) {
      return yield* misconfigured(
        begun
          ? `it was begun for other tables, without ${missing.name}: abandon it first, or give it another name`
          : `\`create\` did not make the table ${missing.name}; it must name it without a schema`
      )
    }
    return found
  })

/**
 * Runs the effect with the doubles in front, and fails where it has written to a table that is neither a double nor one of the store's.
 */
export const writingDoubles = <A, E, R>(
  sql: SqlClient.SqlClient,
  shadow: string,
  storeSchema: string,
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, E | StoreError, R> =>
  Effect.gen(function* () {
    // What the server counts may begin before this transaction.
    const written = run(
      sql<{ table: string; rows: string }>`select quote_ident(schemaname) || '.' || quote_ident(relname) as table,
          (n_tup_ins + n_tup_upd + n_tup_del)::text as rows
        from pg_stat_xact_user_tables
        where n_tup_ins + n_tup_upd + n_tup_del > 0 and schemaname <> ${shadow} and schemaname <> ${storeSchema}`
    )
    yield* inFront(sql, shadow)
    const before = new Map((yield* written).map(({ rows, table }) => [table, rows]))
    const result = yield* effect
    const other = (yield* written).find(({ rows, table }) => before.get(table) !== rows)
    if (other !== undefined) {
      return yield* misconfigured(
        `a projection wrote to ${other.table}, which is not rebuilt: name it in \`tables\`, and have the projection write it without a schema's name`
      )
    }
    return result
  })

/** Nobody but this transaction uses the tables until its end. Does not wait for long: who waits for such a lock holds up all others. */
export const lockLive = (sql: SqlClient.SqlClient, tables: ReadonlyArray<Shadowed>): Effect.Effect<void, StoreError> =>
  Effect.gen(function* () {
    yield* run(sql`select set_config('lock_timeout', ${lockPatience}, true)`)
    yield* run(sql`lock table ${sql.literal(tables.map(({ live }) => live).join(", "))} in access exclusive mode`)
    yield* run(sql`select set_config('lock_timeout', '0', true)`)
  })

/** Puts the doubles in the place of the tables, which are dropped. */
export const swap = (
  sql: SqlClient.SqlClient,
  shadow: string,
  tables: ReadonlyArray<Shadowed>,
  alike: boolean
): Effect.Effect<void, StoreError> =>
  Effect.gen(function* () {
    for (const { live, liveSchema, name } of tables) {
      const double = `${quoted(shadow)}.${name}`
      // What makes the new table the old one for everybody else.
      const statements = [
        ...(yield* texts(sql`select format('alter table %s owner to %I', ${double}::text, pg_get_userbyid(relowner)) as text
          from pg_class where oid = ${live}::regclass and relowner <> (select relowner from pg_class where oid = ${double}::regclass)`)),
        ...(yield* texts(sql`select format('grant %s on %s to %s%s', a.privilege_type, ${double}::text,
            case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end,
            case when a.is_grantable then ' with grant option' else '' end) as text
          from pg_class c, aclexplode(c.relacl) a where c.oid = ${live}::regclass and a.grantee <> c.relowner`))
      ]
      // Those that columns of the old table own would go with it.
      const sequences = yield* run(sql<{
        sequence: string
        column: string | null
      }>`select d.objid::regclass::text as sequence, quote_ident(b.attname) as column
          from pg_depend d
          join pg_class s on s.oid = d.objid and s.relkind = 'S'
          join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
          left join pg_attrdef f on f.adrelid = ${double}::regclass
            and exists (select 1 from pg_depend u where u.classid = 'pg_attrdef'::regclass and u.objid = f.oid and u.refobjid = s.oid)
          left join pg_attribute b on b.attrelid = f.adrelid and b.attnum = f.adnum
          where d.refobjid = ${live}::regclass and d.deptype = 'a' and d.classid = 'pg_class'::regclass`)
      const kept = sequences.filter(({ column }) => column !== null)
      const names = alike ? yield* indexNames(sql, live, double) : []
      yield* execute(sql, [
        ...statements,
        ...kept.map(({ sequence }) => `alter sequence ${sequence} owned by none`),
        `drop table ${live}`,
        ...renamingIndexes(shadow, names),
        `alter table ${double} set schema ${liveSchema}`,
        ...kept.map(({ column, sequence }) => `alter sequence ${sequence} owned by ${live}.${column}`)
      ])
    }
    yield* dropShadows(sql, shadow)
  })

/** Drops the schema of the doubles with all that is in it. */
export const dropShadows = (sql: SqlClient.SqlClient, shadow: string): Effect.Effect<void, StoreError> =>
  Effect.asVoid(run(sql`drop schema if exists ${identifier(sql, shadow)} cascade`))

// --- internal ---

const operation = "Rebuild"

/** Has the doubles found in place of the tables, until the end of the transaction. */
const inFront = (sql: SqlClient.SqlClient, shadow: string): Effect.Effect<void, StoreError> =>
  Effect.asVoid(
    run(sql`select set_config('search_path', quote_ident(${shadow}) || ', ' || current_setting('search_path'), true)`)
  )

/** How long the end of a rebuild waits for those who use the tables, before it lets the others go first and tries again. */
const lockPatience = "500ms"

const run = <A>(statement: Effect.Effect<A, SqlError>): Effect.Effect<A, StoreError> =>
  Effect.mapError(statement, (error) => fromSqlError(operation, "writing", error))

const misconfigured = (description: string) =>
  Effect.fail(new StoreError({ reason: "Misconfigured", operation, description }))

const quoted = (name: string): string => `"${name.replaceAll('"', '""')}"`

const identifier = (sql: SqlClient.SqlClient, name: string) => sql.literal(quoted(name))

/** Statements that the catalog has put together, with its own quoting. */
const execute = (sql: SqlClient.SqlClient, statements: ReadonlyArray<string>) =>
  Effect.forEach(statements, (statement) => run(sql.unsafe(statement)), { discard: true })

const texts = (
  statement: Effect.Effect<ReadonlyArray<object>, SqlError>
): Effect.Effect<ReadonlyArray<string>, StoreError> =>
  Effect.map(run(statement), (rows) => rows.map((row) => String(Reflect.get(row, "text"))))

const find = (sql: SqlClient.SqlClient, table: string): Effect.Effect<Shadowed, StoreError> =>
  Effect.flatMap(
    run(
      sql<{
        schema: string
        name: string
        kind: string
      }>`select quote_ident(n.nspname) as schema, quote_ident(c.relname) as name, c.relkind::text as kind
        from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = to_regclass(${table})`
    ),
    ([row]) =>
      row === undefined || row.kind !== "r"
        ? misconfigured(
            `there is no table ${JSON.stringify(table)}${row === undefined ? "" : " that is an ordinary one"}`
          )
        : Effect.succeed({ live: `${row.schema}.${row.name}`, liveSchema: row.schema, name: row.name })
  )

/** What hangs on a table, and would be lost with it: better said before the work than after. */
const refuseDependents = (sql: SqlClient.SqlClient, live: string): Effect.Effect<void, StoreError> =>
  Effect.flatMap(
    texts(
      sql`select 'the view ' || r.ev_class::regclass as text from pg_depend d join pg_rewrite r on r.oid = d.objid
          where d.refobjid = ${live}::regclass and d.classid = 'pg_rewrite'::regclass and r.ev_class <> ${live}::regclass
        union select 'the foreign key ' || quote_ident(conname) || ' of ' || conrelid::regclass from pg_constraint
          where contype = 'f' and ${live}::regclass in (conrelid, confrelid)
        union select 'the trigger ' || quote_ident(tgname) from pg_trigger where tgrelid = ${live}::regclass and not tgisinternal
        union select 'the policy ' || quote_ident(polname) from pg_policy where polrelid = ${live}::regclass
        union select 'the publication ' || quote_ident(p.pubname) from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
          where r.prrelid = ${live}::regclass
        union select 'the table ' || case when inhparent = ${live}::regclass then inhrelid else inhparent end::regclass from pg_inherits
          where ${live}::regclass in (inhrelid, inhparent)`
    ),
    (found) =>
      found.length === 0
        ? Effect.void
        : misconfigured(
            `the table ${live} can't be put aside for a new one, since these hang on it: ${found.join(", ")}`
          )
  )

interface Renaming {
  readonly from: string
  readonly to: string
}

const renamingIndexes = (shadow: string, names: ReadonlyArray<Renaming>): ReadonlyArray<string> =>
  names.map(({ from, to }) => `alter index ${quoted(shadow)}.${from} rename to ${to}`)

interface IndexRow {
  readonly name: string
  readonly definition: string
}

/** The indexes of a double by the names that their models have; `like` gives them names of its own. */
const indexNames = (
  sql: SqlClient.SqlClient,
  live: string,
  double: string
): Effect.Effect<ReadonlyArray<Renaming>, StoreError> =>
  Effect.gen(function* () {
    const of = (table: string) =>
      run(
        sql<IndexRow>`select quote_ident(c.relname) as name,
            regexp_replace(pg_get_indexdef(i.indexrelid), '^.*? USING ', case when i.indisunique then 'unique ' else '' end) as definition
          from pg_index i join pg_class c on c.oid = i.indexrelid where i.indrelid = ${table}::regclass order by c.relname`
      )
    const doubles = [...(yield* of(double))]
    const names: Array<Renaming> = []
    for (const { definition, name } of yield* of(live)) {
      const index = doubles.findIndex((one) => one.definition === definition)
      const [found] = index < 0 ? [] : doubles.splice(index, 1)
      if (found !== undefined && found.name !== name) names.push({ from: found.name, to: name })
    }
    // By names that nobody has, since those that are wanted may be given to others of them.
    return [
      ...names.map(({ from }, index) => ({ from, to: `rebuilt_index_${index}` })),
      ...names.map(({ to }, index) => ({ from: `rebuilt_index_${index}`, to }))
    ]
  })
