/** The runners of a cluster under faults: they are started, killed, stopped, ended, and cut off their database. */
import type * as SqlClient from "@effect/sql/SqlClient"
import * as Effect from "effect/Effect"
import * as ExecutionStrategy from "effect/ExecutionStrategy"
import * as Exit from "effect/Exit"
import * as Random from "effect/Random"
import * as Scope from "effect/Scope"
import { type Child, startChild } from "../../examples/cluster/children.js"
import { freePort } from "../../examples/cluster/freePort.js"
import type { ClusterOptions } from "../../examples/cluster/node.js"
import type { RunnerOptions } from "../../examples/cluster/runner.js"

/** Where the runners are, and how they are started. */
export interface CrewOptions extends ClusterOptions {
  /** The program of a runner, as one file. */
  readonly file: string
  readonly url: string
  /** A connection to the database. */
  readonly admin: SqlClient.SqlClient
}

export interface Crew {
  readonly count: () => number
  readonly add: Effect.Effect<void, unknown>
  /** A runner gets SIGKILL. */
  readonly kill: Effect.Effect<void, unknown>
  /** A runner is stopped as long as the effect runs. */
  readonly stop: (during: Effect.Effect<void>) => Effect.Effect<void, unknown>
  /** A runner gets SIGTERM, and gives its shards back. */
  readonly remove: Effect.Effect<void, unknown>
  /** The connection by which a runner holds its shards is terminated. */
  readonly cut: Effect.Effect<void, unknown>
}

interface Member {
  readonly child: Child
  readonly port: number
  readonly scope: Scope.CloseableScope
}

export const makeCrew = (options: CrewOptions): Effect.Effect<Crew, never, Scope.Scope> =>
  Effect.map(Effect.scope, (parent) => {
    const members: Array<Member> = []
    const anyone = Effect.map(
      Effect.suspend(() => Random.nextIntBetween(0, members.length)),
      (index) => members[index]
    )
    /** Takes a runner away, and does something to it. */
    const leaving = (act: (child: Child) => Effect.Effect<void>) =>
      Effect.flatMap(anyone, (member) => {
        if (member === undefined) return Effect.void
        members.splice(members.indexOf(member), 1)
        return Effect.zipRight(act(member.child), Scope.close(member.scope, Exit.void))
      })
    return {
      count: () => members.length,
      add: Effect.gen(function* () {
        const scope = yield* Scope.fork(parent, ExecutionStrategy.sequential)
        const port = yield* Effect.promise(freePort)
        const { file, leaseMillis, locks, url } = options
        const order: RunnerOptions = { url, port, locks, leaseMillis }
        members.push({ child: yield* Scope.extend(startChild(file, order), scope), port, scope })
      }),
      kill: leaving((child) => child.signal("SIGKILL")),
      stop: (during) =>
        Effect.flatMap(anyone, (member) =>
          member === undefined
            ? Effect.void
            : Effect.zipRight(member.child.signal("SIGSTOP"), Effect.ensuring(during, member.child.signal("SIGCONT")))
        ),
      remove: leaving((child) =>
        Effect.zipRight(child.signal("SIGTERM"), Effect.ignore(Effect.timeout(child.gone, "8 seconds")))
      ),
      cut: Effect.flatMap(
        Effect.sync(() => members.map(({ port }) => `runner-${port}`)),
        (names) =>
          options.admin`select pg_terminate_backend(pid) from pg_stat_activity
          where application_name = any(${names}::text[])
          order by query ilike any(array['%advisory%', '%cluster_locks%', '%cluster_runners%']) desc, random() limit 1`
      )
    }
  })
