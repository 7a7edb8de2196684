/**
 * The nodes of subscriptions, in the table `subscription_nodes`, and their partitions, in `subscription_shares`.
 * `subscriptions.ts` uses it.
 *
 * A look is one statement. It writes only when a third of the duration has passed since the last sign of life. All
 * times are those of the database.
 *
 * A node whose sign of life is missing, because its pool has no connection for it, still counts while it holds a lease:
 * its checkpoints renew that. A process that is stopped gives no sign of life and renews no lease.
 */
import type * as Statement from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { StoreError } from "../../StoreError.js"
import type { Assignment, JoinOptions, Membership, Shares, SubscriptionNode } from "../../SubscriptionStore.js"
import { liveSleep } from "../runtime/clock.js"
import { awaitGrace } from "../runtime/interruption.js"
import { isTransient } from "../runtime/retry.js"
import { repartition } from "./repartition.js"
import type { StoreTables } from "./storeTables.js"
import { leaseEnd, makeStatements } from "./subscriptionStatements.js"

export const joinNodes = (
  tables: StoreTables,
  options: JoinOptions
): Effect.Effect<Membership, StoreError, Scope.Scope> =>
  Effect.gen(function* () {
    // Before the row is there, because an interrupted statement may still insert it.
    yield* Effect.addFinalizer(() =>
      awaitGrace(Effect.ignore(Effect.retry(leave(tables, options), { times: 10, while: isTransient })))
    )
    yield* announce(tables, options)
    const { duration } = options
    let isAlone = false
    const look = (declines: ReadonlyArray<number>): Effect.Effect<Shares, StoreError> =>
      Effect.flatMap(lookOnce(tables, options, declines), (shares) => {
        if (shares === undefined) return Effect.zipRight(announce(tables, options), look(declines))
        isAlone = shares.nodes.length === 1
        return Effect.succeed(shares)
      })
    return {
      look,
      assign: (changes) => assign(tables, options.name, changes),
      repartition: (from) => repartition(tables, options, from, isAlive(tables)),
      due: Effect.suspend(() => liveSleep(Math.min(duration / 3, isAlone ? pauseAlone : pauseInCompany)))
    }
  })

/** The nodes of a subscription, in the order in which they joined. */
export const nodesOf = (
  { schema, sql }: StoreTables,
  name: string
): Effect.Effect<ReadonlyArray<SubscriptionNode>, StoreError> =>
  Effect.map(
    makeStatements(sql).queryApart(
      sql<NodesRow>`select ${nodesOfName({ schema, sql }, sql`n.name = ${name}`)} as nodes`
    ),
    ([row]) => parseNodes(row)
  )

// --- internal ---

/** The longest pauses between two looks, in milliseconds: of a node that is alone, and of one among others. */
const pauseAlone = 5000
const pauseInCompany = 1000

interface NodesRow {
  readonly nodes: string
}

interface LookRow extends NodesRow {
  readonly is_known: boolean
  readonly partitions: number | null
  readonly assigned: string
}

const parseNodes = (row: NodesRow | undefined): ReadonlyArray<SubscriptionNode> =>
  row === undefined ? [] : JSON.parse(row.nodes)

/** The nodes that have not left, as JSON. */
const nodesOfName = (
  { schema, sql }: Pick<StoreTables, "schema" | "sql">,
  condition: Statement.Fragment,
  isOwn: Statement.Fragment = sql`false`
): Statement.Fragment =>
  sql`(
    select coalesce(json_agg(json_build_object('node', n.node, 'holder', n.holder,
        'partitions', n.partitions, 'declines', n.declines, 'since', floor(extract(epoch from n.joined_at) * 1000)::bigint) order by n.joined_at, n.node), '[]')::text
    from ${schema}.subscription_nodes n
    where ${condition} and (${isOwn} or ${isAlive({ schema, sql })})
  )`

const isAlive = ({ schema, sql }: Pick<StoreTables, "schema" | "sql">): Statement.Fragment =>
  sql`(n.alive_until > clock_timestamp() or exists (
    select 1 from ${schema}.subscription_shares held
    join ${schema}.subscriptions s on s.name = held.name and s.partition = held.partition
    where held.name = n.name and held.node = n.node and s.holder = n.holder and s.leased_until > clock_timestamp()
  ))`

const announce = ({ schema, sql }: StoreTables, { duration, holder, name, node, partitions }: JoinOptions) =>
  makeStatements(sql).execute(
    sql`insert into ${schema}.subscription_nodes (name, node, holder, partitions, alive_until)
      values (${name}, ${node}, ${holder}, ${partitions}, ${leaseEnd(sql, duration)})
      on conflict (name, node) do update set alive_until = excluded.alive_until`
  )

/** Gives a sign of life where one is due. Undefined where another node has deleted the row, because none came. */
const lookOnce = (
  { schema, sql }: StoreTables,
  { duration, name, node }: JoinOptions,
  declines: ReadonlyArray<number>
): Effect.Effect<Shares | undefined, StoreError> => {
  const declined = sql`string_to_array(${declines.join()}::text, ',')::int[]`
  const own = sql`name = ${name} and node = ${node}`
  return Effect.map(
    makeStatements(sql).execute(
      sql<LookRow>`with alive as (
          update ${schema}.subscription_nodes set alive_until = ${leaseEnd(sql, duration)}, declines = ${declined}
          where ${own} and (declines <> ${declined} or alive_until < ${leaseEnd(sql, (duration * 2) / 3)})
        )
        select exists (select 1 from ${schema}.subscription_nodes where ${own}) as is_known,
          (select partitions from ${schema}.subscriptions where name = ${name} order by partition limit 1) as partitions,
          ${nodesOfName({ schema, sql }, sql`n.name = ${name}`, sql`n.node = ${node}`)} as nodes,
          (
            select coalesce(json_agg(json_build_object('partition', partition, 'node', node)), '[]')::text
            from ${schema}.subscription_shares where name = ${name}
          ) as assigned`
    ),
    ([row]) => {
      if (row?.is_known !== true) return undefined
      // The row of this node is seen as it was before the update.
      const nodes = parseNodes(row).map((one) => (one.node === node ? { ...one, declines } : one))
      const partitions = row.partitions === null ? undefined : Number(row.partitions)
      return { partitions, nodes, assigned: JSON.parse(row.assigned) }
    }
  )
}

/** Two nodes take the locks of the rows in one order. Nodes that have left are deleted. */
const assign = (
  { schema, sql }: StoreTables,
  name: string,
  changes: ReadonlyArray<Assignment>
): Effect.Effect<void, StoreError> =>
  Effect.asVoid(
    makeStatements(sql).execute(
      sql`with changed as (
          select * from json_to_recordset(${JSON.stringify(changes)}::json) as c (partition int, "from" text, "to" text)
        ),
        left_behind as (
          delete from ${schema}.subscription_nodes n
          using (
            select n.node from ${schema}.subscription_nodes n
            where n.name = ${name} and not ${isAlive({ schema, sql })} for update skip locked
          ) dead
          where n.name = ${name} and n.node = dead.node
        )
        insert into ${schema}.subscription_shares as shares (name, partition, node)
        select ${name}, partition, "to" from changed order by partition
        on conflict (name, partition) do update set node = excluded.node
        where shares.node = (select "from" from changed where changed.partition = excluded.partition)`
    )
  )

const leave = ({ schema, sql }: StoreTables, { name, node }: JoinOptions) =>
  makeStatements(sql).execute(sql`delete from ${schema}.subscription_nodes where name = ${name} and node = ${node}`)
