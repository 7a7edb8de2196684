/** Starts child processes, asks them over their channel, and ends them with the scope, on Ctrl-C and on failure. */
import { type ChildProcess, spawn } from "node:child_process"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as FiberId from "effect/FiberId"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"

/** A process that has said that it is ready. */
export interface Child {
  readonly pid: number
  /** SIGSTOP and SIGKILL work at any time. SIGTERM lets a process end its work. */
  readonly signal: (name: NodeJS.Signals) => Effect.Effect<void>
  /** Done when the process is gone. */
  readonly gone: Effect.Effect<void>
  /** Sends a message, and returns the answer to it. It fails if the process ends before. */
  readonly ask: (message: object) => Effect.Effect<unknown, ChildError>
}

export class ChildError extends Schema.TaggedError<ChildError>()("ChildError", { message: Schema.String }) {}

/** Starts a program of this package, in TypeScript or as it was built, with its options as JSON. */
export const startChild = (file: string, options: object): Effect.Effect<Child, ChildError, Scope.Scope> =>
  Effect.gen(function* () {
    const { child, ready } = yield* Effect.acquireRelease(
      Effect.sync(() => {
        // The driver warns of the statements that the cluster sends concurrently on its connection.
        const loader = ["--no-deprecation", ...(file.endsWith(".ts") ? ["--import", "tsx"] : [])]
        const process_ = spawn(process.execPath, [...loader, file, JSON.stringify(options)], {
          stdio: ["ignore", "inherit", "inherit", "ipc"],
          env: { ...process.env, NODE_OPTIONS: "" }
        })
        const child = followed(process_)
        alive.add(process_)
        process_.once("exit", () => alive.delete(process_))
        return child
      }),
      ({ child }) => Effect.zipRight(child.signal("SIGKILL"), child.gone)
    )
    yield* Deferred.await(ready)
    return child
  })

/** Called by a child: says that it is ready, and answers the messages of its parent. It ends when its parent has ended. */
export const serveParent = (answer: (message: unknown) => Effect.Effect<object>): Effect.Effect<never> =>
  Effect.async<never>(() => {
    process.on("message", ({ ask, id }: { readonly ask: unknown; readonly id: number }) => {
      Effect.runFork(Effect.map(answer(ask), (value) => process.send?.({ id, value })))
    })
    process.once("disconnect", () => process.exit(0))
    process.send?.({ ready: true })
  })

// --- internal ---

interface Answer {
  readonly ready?: boolean
  readonly id?: number
  readonly value?: unknown
}

const followed = (child: ChildProcess) => {
  const ready = Deferred.unsafeMake<unknown, ChildError>(FiberId.none)
  const gone = Deferred.unsafeMake<void>(FiberId.none)
  const waiting = new Map<number, Deferred.Deferred<unknown, ChildError>>()
  let asked = 0
  child.on("message", ({ id, ready: isReady, value }: Answer) => {
    if (isReady === true) Deferred.unsafeDone(ready, Effect.void)
    if (id === undefined) return
    const deferred = waiting.get(id)
    waiting.delete(id)
    if (deferred !== undefined) Deferred.unsafeDone(deferred, Effect.succeed(value))
  })
  const end = (why: string) => {
    const failure = Effect.fail(new ChildError({ message: `a process has ended: ${why}` }))
    for (const deferred of [ready, ...waiting.values()]) Deferred.unsafeDone(deferred, failure)
    waiting.clear()
    Deferred.unsafeDone(gone, Effect.void)
  }
  child.once("error", (error) => end(String(error)))
  child.once("exit", (code, signal) => end(signal ?? `exit code ${code}`))
  const ask = (message: object): Effect.Effect<unknown, ChildError> =>
    Effect.suspend(() => {
      const deferred = Deferred.unsafeMake<unknown, ChildError>(FiberId.none)
      const id = asked++
      if (!child.connected) return new ChildError({ message: "the process has ended" })
      waiting.set(id, deferred)
      child.send({ id, ask: message }, () => {})
      return Deferred.await(deferred)
    })
  const signal = (name: NodeJS.Signals) => Effect.sync(() => void child.kill(name))
  return { child: { pid: child.pid ?? 0, signal, gone: Deferred.await(gone), ask }, ready }
}

/** A stopped process does not notice that its parent has ended. */
const alive = new Set<ChildProcess>()
process.once("exit", () => {
  for (const child of alive) child.kill("SIGKILL")
})
