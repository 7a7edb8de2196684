/** The example adapter passes the contract, and survives crashes and failures of the disk. */

import { spawnSync } from "node:child_process"
import { type FileHandle, mkdtemp, open, readdir, readFile, rm, stat, symlink, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { describe, expect, inject, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import { type Event, type Projection, type Snapshot, StoreAdapter, StoreError, Timestamp } from "effect-maestro"
import * as StoreContract from "effect-maestro/StoreContract"
import * as FileStore from "../examples/custom-adapter/FileStore.js"
import { useProgram } from "./program.js"

/** A folder that is removed with the scope. */
const makeFolder = Effect.acquireRelease(
  Effect.promise(() => mkdtemp(join(tmpdir(), "file-store-"))),
  (folder) => Effect.promise(() => rm(folder, { recursive: true }))
)

const isLong = inject("runs") > 100

StoreContract.suite("FileStore", Layer.unwrapScoped(Effect.map(makeFolder, FileStore.layer)), {
  runs: Math.ceil(inject("runs") / 2),
  timeout: inject("timeout"),
  lacks: ["callerTransaction"]
})

describe("FileStore", () => {
  it.scoped("a folder that is opened again has all records unchanged", () =>
    Effect.gen(function* () {
      const folder = yield* makeFolder
      const [a, b] = [yield* stream("a", 1, 3), yield* stream("b ★ ✓\n\u2028", 1, 2)]
      const [old, saved] = [yield* snapshot("a", 2), yield* snapshot("a", 3)]
      const saving: Projection.Projection<unknown, StoreAdapter.StoreAdapter> = {
        name: "saving",
        project: (one) => using((store) => store.commitSnapshot(one.sequence === 2 ? saved : old))
      }
      yield* within(
        folder,
        using((store) =>
          Effect.gen(function* () {
            yield* store.commitEvents(a.slice(0, 1))
            yield* store.commitSnapshot(old)
            yield* store.commitAll([...a.slice(1), ...b], [saving])
            yield* store.commitSnapshot(old)
          })
        )
      )
      for (const _ of [1, 2]) {
        expect(yield* within(folder, read("a"))).toEqual(a)
        expect(yield* within(folder, read("b ★ ✓\n\u2028"))).toEqual(b)
        expect(
          yield* within(
            folder,
            using((store) => store.getSnapshot("a", 0))
          )
        ).toEqual(Option.some(saved))
      }
      // One line for each commit, and no line for the outdated snapshot.
      expect((yield* journalOf(folder)).toString().match(/\n/g)).toHaveLength(3)
      expect(yield* Effect.promise(() => readdir(folder))).toEqual(["journal.jsonl"])
    })
  )

  it.scoped("a duplicate, refused or rolled back commit adds nothing to the journal", () =>
    Effect.gen(function* () {
      const folder = yield* makeFolder
      const events = yield* stream("a", 1, 2)
      yield* within(folder, commit(events))
      const before = yield* journalOf(folder)
      yield* within(
        folder,
        using((store) =>
          Effect.gen(function* () {
            yield* store.commitEvents(events)
            yield* Effect.flip(store.commitEvents(yield* stream("a", 2, 2)))
            const failing: Projection.Projection<string> = { name: "failing", project: () => Effect.fail("no") }
            expect(yield* Effect.flip(store.commitAll(yield* stream("b", 1, 1), [failing]))).toBe("no")
          })
        )
      )
      expect(yield* journalOf(folder)).toEqual(before)
    })
  )

  it.scoped("a journal that is cut anywhere in its last line opens without that commit, and accepts further ones", () =>
    Effect.gen(function* () {
      const folder = yield* makeFolder
      const [before, last, next] = [yield* stream("a", 1, 2), yield* stream("a", 3, 2), yield* stream("a", 3, 1)]
      const other = yield* stream("é", 1, 1)
      yield* within(folder, commit(before))
      const { length } = yield* journalOf(folder)
      yield* within(folder, commit([...last, ...other]))
      const whole = yield* journalOf(folder)
      expect(whole.length - length).toBeGreaterThan(500)
      for (const end of yield* placesIn(length, whole.length)) {
        yield* writeJournal(folder, whole.subarray(0, end))
        yield* within(
          folder,
          using((store) =>
            Effect.gen(function* () {
              const isThere = end === whole.length
              expect(yield* store.getEvents("a", 1), `cut at ${end}`).toEqual(isThere ? [...before, ...last] : before)
              expect(yield* store.getEvents("é", 1), `cut at ${end}`).toEqual(isThere ? other : [])
              if (!isThere) yield* store.commitEvents(next)
            })
          )
        )
        if (end < whole.length) expect(yield* within(folder, read("a")), `cut at ${end}`).toEqual([...before, ...next])
      }
    })
  )

  it.scoped("a damaged last line is cut off, because a crash can leave any part of it unwritten", () =>
    Effect.gen(function* () {
      const folder = yield* makeFolder
      const [before, last] = [yield* stream("a", 1, 2), yield* stream("a", 3, 2)]
      yield* within(folder, commit(before))
      const { length } = yield* journalOf(folder)
      yield* within(folder, commit(last))
      const whole = yield* journalOf(folder)
      for (const at of [length, length + 64, length + 65, length + 200, whole.length - 2, whole.length - 1]) {
        yield* writeJournal(folder, Buffer.from(whole).fill(0, at, at + 1))
        expect(yield* within(folder, read("a")), `at ${at}`).toEqual(before)
        expect(yield* journalOf(folder), `at ${at}`).toEqual(whole.subarray(0, length))
      }
    })
  )

  it.scoped("a damaged line before the last one is a StoreError, and nothing is changed", () =>
    Effect.gen(function* () {
      const folder = yield* makeFolder
      for (const id of ["a", "b", "c"]) yield* within(folder, commit(yield* stream(id, 1, 1)))
      const whole = yield* journalOf(folder)
      const second = whole.indexOf("\n") + 1
      const third = whole.indexOf("\n", second) + 1
      // Without the line feed, because a line with a damaged line feed is a part of the last line.
      for (const at of yield* placesIn(second, third - 2)) {
        const damaged = Buffer.from(whole)
        damaged.writeUInt8(damaged.readUInt8(at) ^ 1, at)
        // Also if the last line is damaged too.
        for (const content of isLong || at === second || at === third - 2
          ? [damaged, damaged.subarray(0, -5)]
          : [damaged]) {
          yield* writeJournal(folder, content)
          const error = yield* Effect.flip(within(folder, read("a")))
          expect(error, `at ${at}`).toMatchObject({ _tag: "StoreError", reason: "Unknown", operation: "FileStore" })
          expect(error.message).toContain("line 2 of")
          expect(yield* journalOf(folder)).toEqual(content)
        }
      }
    })
  )

  it.scoped("a missing line is a StoreError, and a line that is there twice is a duplicate", () =>
    Effect.gen(function* () {
      const folder = yield* makeFolder
      for (const sequence of [1, 2, 3]) yield* within(folder, commit(yield* stream("a", sequence, 1)))
      const [first = "", second = "", third = ""] = (yield* journalOf(folder)).toString().split(/(?<=\n)/)
      for (const [lines, line] of [
        [[second, third], 1],
        [[first, third], 2]
      ] as const) {
        yield* writeJournal(folder, Buffer.from(lines.join("")))
        expect((yield* Effect.flip(within(folder, read("a")))).message).toContain(`line ${line} of`)
      }
      yield* writeJournal(folder, Buffer.from([first, second, first, second, third].join("")))
      expect((yield* within(folder, read("a"))).map(({ sequence }) => sequence)).toEqual([1, 2, 3])
    })
  )

  it.scoped("a write to a full disk is Exhausted and leaves nothing, and the next write works", () =>
    Effect.gen(function* () {
      const folder = yield* makeFolder
      const [first, lost, next] = [yield* stream("a", 1, 1), yield* stream("a", 2, 5), yield* stream("a", 2, 1)]
      for (const fail of [halfWritten("ENOSPC"), halfWritten("EDQUOT"), notSynced("ENOSPC")]) {
        yield* writeJournal(folder, Buffer.alloc(0))
        yield* within(
          folder,
          using((store) =>
            Effect.gen(function* () {
              yield* store.commitEvents(first)
              const before = yield* journalOf(folder)
              yield* fail
              const error = yield* Effect.flip(store.commitEvents(lost))
              expect(error).toMatchObject({ _tag: "StoreError", reason: "Exhausted", operation: "commitEvents" })
              expect(error).toHaveProperty("code", expect.stringMatching(/^E/))
              expect(yield* journalOf(folder)).toEqual(before)
              expect(yield* store.getEvents("a", 1)).toEqual(first)
              yield* store.commitEvents(next)
            })
          )
        )
        expect(yield* within(folder, read("a"))).toEqual([...first, ...next])
      }
    })
  )

  it.scoped("a failed line that can't be cut off is CommitUnknown, until a later commit cuts it off", () =>
    Effect.gen(function* () {
      const folder = yield* makeFolder
      const events = yield* stream("a", 1, 2)
      yield* within(
        folder,
        using((store) =>
          Effect.gen(function* () {
            yield* notSynced("EIO")
            yield* notCut("EIO")
            const unknown = yield* Effect.flip(store.commitEvents(events))
            expect(unknown).toMatchObject({ _tag: "StoreError", reason: "CommitUnknown", code: "EIO" })
            expect(yield* store.getEvents("a", 1)).toEqual([])
            yield* notCut("EIO")
            const unavailable = yield* Effect.flip(store.commitEvents(yield* stream("b", 1, 1)))
            expect(unavailable).toMatchObject({ _tag: "StoreError", reason: "Unavailable", code: "EIO" })
            yield* store.commitEvents(events)
          })
        )
      )
      expect(yield* within(folder, read("a"))).toEqual(events)
      expect(yield* within(folder, read("b"))).toEqual([])
    })
  )

  it.scoped("an interruption while the disk writes waits for the commit, which the store then shows", () =>
    Effect.gen(function* () {
      const folder = yield* makeFolder
      const [events, next] = [yield* stream("a", 1, 2), yield* stream("a", 3, 1)]
      const started = yield* Deferred.make<void>()
      let goOn = () => {}
      yield* within(
        folder,
        using((store) =>
          Effect.gen(function* () {
            yield* replaceOnce("datasync", (file) => {
              Deferred.unsafeDone(started, Effect.void)
              return new Promise<void>((resolve) => {
                goOn = resolve
              }).then(() => file.datasync())
            })
            const fiber = yield* Effect.fork(store.commitAll(events, [passing]))
            yield* Deferred.await(started)
            expect(yield* store.getEvents("a", 1)).toEqual([])
            yield* Fiber.interruptFork(fiber)
            yield* Effect.yieldNow()
            goOn()
            yield* Fiber.await(fiber)
            expect(yield* store.getEvents("a", 1)).toEqual(events)
            yield* store.commitEvents(next)
          })
        )
      )
      expect(yield* within(folder, read("a"))).toEqual([...events, ...next])
    })
  )

  it.scoped("a folder can be opened once; a second opening by any name of the folder is refused", () =>
    Effect.gen(function* () {
      const folder = yield* makeFolder
      const link = `${folder}-link`
      yield* Effect.acquireRelease(
        Effect.promise(() => symlink(folder, link)),
        () => Effect.promise(() => rm(link))
      )
      yield* within(
        folder,
        Effect.gen(function* () {
          for (const name of [folder, link, `${folder}/../${folder.split("/").at(-1)}`]) {
            const error = yield* Effect.flip(within(name, read("a")))
            expect(error).toMatchObject({ _tag: "StoreError", reason: "Unavailable", operation: "FileStore" })
          }
        })
      )
      // Concurrently, then one after the other.
      const openings = yield* Effect.forEach(
        Arr.range(1, 20),
        () => Effect.either(within(folder, Effect.zipRight(Effect.yieldNow(), read("a")))),
        { concurrency: "unbounded" }
      )
      expect(openings.filter(Either.isRight)).toHaveLength(1)
      expect(yield* within(link, read("a"))).toEqual([])
      expect(yield* Effect.promise(() => readdir(folder))).toEqual(["journal.jsonl"])
    })
  )

  it.scoped("a new folder and its parents are on the disk before a commit is acknowledged", () =>
    Effect.gen(function* () {
      const root = yield* makeFolder
      const above = [root, join(root, "a"), join(root, "a/b"), join(root, "a/b/c")]
      const inodes = (paths: ReadonlyArray<string>) =>
        Effect.promise(() => Promise.all(paths.map((path) => stat(path).then(({ ino }) => ino))))
      const synced = yield* recordSynced
      yield* within(join(root, "a/b/c"), read("a"))
      expect([...synced]).toEqual(expect.arrayContaining(yield* inodes(above)))
      // A crash may have left the folders without syncing them.
      synced.clear()
      yield* within(join(root, "a/b/c"), commit(yield* stream("a", 1, 1)))
      expect([...synced]).toEqual(expect.arrayContaining(yield* inodes(above)))
    })
  )

  it.scoped("a process that is killed while it takes the lock does not hold it", () =>
    Effect.gen(function* () {
      const folder = yield* makeFolder
      expect(spawnWriter(killedOpener(), folder).signal).toBe("SIGKILL")
      expect(yield* within(folder, read("a"))).toEqual([])
      expect(yield* Effect.promise(() => readdir(folder))).toEqual(["journal.jsonl"])
    })
  )

  it.scoped("a process that is killed leaves all acknowledged commits, and no lock", () =>
    Effect.gen(function* () {
      const folder = yield* makeFolder
      const { signal, stdout } = spawnWriter(killedWriter(), folder)
      expect(signal).toBe("SIGKILL")
      expect(yield* Effect.promise(() => readdir(folder))).toContain("lock")
      const stored = yield* within(folder, read("a"))
      expect(stored.map(({ sequence }) => sequence)).toEqual(Arr.makeBy(stored.length, (index) => index + 1))
      expect(stored.length).toBeGreaterThanOrEqual(Number(stdout))
      expect(Number(stdout)).toBeGreaterThan(0)
    })
  )

  it.scoped("a commit inside a projection undoes only itself, and is in the line of the outer commit", () =>
    Effect.gen(function* () {
      const folder = yield* makeFolder
      const outer = yield* stream("a", 1, 1)
      const [kept, undone, after] = [yield* stream("b", 1, 2), yield* stream("b", 3, 2), yield* stream("b", 3, 1)]
      const failing: Projection.Projection<string> = { name: "failing", project: () => Effect.fail("no") }
      yield* within(
        folder,
        using((store) =>
          store.commitAll(outer, [
            {
              name: "nesting",
              project: () =>
                Effect.gen(function* () {
                  yield* store.commitAll(kept, [passing])
                  expect(yield* Effect.flip(store.commitAll(undone, [passing, failing]))).toBe("no")
                  expect(yield* store.getEvents("b", 1)).toEqual(kept)
                  yield* store.commitEvents(after)
                  expect(yield* store.getEvents("b", 2)).toEqual([...kept.slice(1), ...after])
                })
            }
          ])
        )
      )
      expect((yield* journalOf(folder)).toString().match(/\n/g)).toHaveLength(1)
      expect(yield* within(folder, read("b"))).toEqual([...kept, ...after])
    })
  )

  it.scoped("of the concurrent commits of a projection at one sequence exactly one succeeds", () =>
    Effect.gen(function* () {
      const folder = yield* makeFolder
      const outer = yield* stream("a", 1, 1)
      const inner = yield* Effect.forEach(Arr.range(1, 10), (length) => stream("b", 1, length))
      const results: Array<Either.Either<void, unknown>> = []
      yield* within(
        folder,
        using((store) =>
          store.commitAll(outer, [
            {
              name: "many",
              project: () =>
                Effect.map(
                  Effect.forEach(inner, (events) => Effect.either(store.commitAll(events, [passing])), {
                    concurrency: "unbounded"
                  }),
                  (all) => results.push(...all)
                )
            }
          ])
        )
      )
      expect(results.filter(Either.isRight)).toHaveLength(1)
      expect(Arr.getLefts(results).filter((error) => !(error instanceof StoreError.RetryCommand))).toEqual([])
      expect(yield* within(folder, read("b"))).toEqual(inner[results.findIndex(Either.isRight)])
    })
  )

  it.scoped("a fiber that outlives its commit reads committed records, and a commit that it has begun is refused", () =>
    Effect.gen(function* () {
      const folder = yield* makeFolder
      const [outer, late] = [yield* stream("a", 1, 1), yield* stream("b", 1, 1)]
      const [begun, go] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      const waiting: Projection.Projection = {
        name: "waiting",
        project: () => Effect.zipRight(Deferred.succeed(begun, undefined), Deferred.await(go))
      }
      const left = yield* Deferred.make<Fiber.Fiber<unknown, unknown>>()
      const store = yield* FileStore.make(folder)
      yield* store.commitAll(outer, [
        {
          name: "leaving",
          project: () =>
            Effect.gen(function* () {
              const fiber = yield* Effect.forkDaemon(
                Effect.zip(Effect.flip(store.commitAll(late, [waiting])), store.getEvents("a", 1))
              )
              yield* Deferred.succeed(left, fiber)
              yield* Deferred.await(begun)
            })
        }
      ])
      yield* Deferred.succeed(go, undefined)
      const result = yield* Fiber.join(yield* Deferred.await(left))
      expect(result).toMatchObject([{ _tag: "StoreError", reason: "Unknown", operation: "commitAll" }, outer])
      expect(yield* store.getEvents("b", 1)).toEqual([])
    })
  )

  it.scoped("two stores may commit to each other in their projections", () =>
    Effect.gen(function* () {
      const [one, two] = [yield* FileStore.make(yield* makeFolder), yield* FileStore.make(yield* makeFolder)]
      const [a, b, c] = [yield* stream("a", 1, 1), yield* stream("b", 1, 1), yield* stream("c", 1, 1)]
      const back: Projection.Projection<unknown> = {
        name: "back",
        project: () =>
          Effect.zipRight(
            one.commitEvents(c),
            Effect.map(one.getEvents("a", 1), (at) => expect(at).toEqual(a))
          )
      }
      const forth: Projection.Projection<unknown> = { name: "forth", project: () => two.commitAll(b, [back]) }
      yield* one.commitAll(a, [forth])
      expect(yield* Effect.all([one.getEvents("a", 1), two.getEvents("b", 1), one.getEvents("c", 1)])).toEqual([
        a,
        b,
        c
      ])
    })
  )

  it.scoped("a folder that can't be created is a StoreError with the system's code", () =>
    Effect.gen(function* () {
      const folder = yield* makeFolder
      yield* writeJournal(folder, Buffer.alloc(0))
      const error = yield* Effect.flip(within(join(folder, "journal.jsonl", "below"), read("a")))
      expect(error).toMatchObject({ _tag: "StoreError", reason: "Unknown", code: "ENOTDIR" })
    })
  )
})

// --- helpers ---

/**
 * All places in a part of the journal, in the long run. Otherwise those around its beginning, its end and the end of the
 * first checksum, and each ninth of the others, from a random one on.
 */
const placesIn = (first: number, last: number): Effect.Effect<ReadonlyArray<number>> =>
  Effect.map(Random.nextIntBetween(0, 9), (offset) => {
    const isNear = (at: number, place: number) => Math.abs(at - place) < 4
    return Arr.range(first, last).filter(
      (at) => isLong || isNear(at, first) || isNear(at, first + 65) || isNear(at, last) || (at - first) % 9 === offset
    )
  })

const using = <A, E, R>(f: (store: StoreAdapter.StoreAdapterService) => Effect.Effect<A, E, R>) =>
  Effect.flatMap(StoreAdapter.StoreAdapter, f)

const commit = (events: ReadonlyArray<Event.Event>) => using((store) => store.commitEvents(events))

const read = (aggregateId: string) => using((store) => store.getEvents(aggregateId, 1))

/** Opens the folder, and closes it again. */
const within = <A, E, R>(folder: string, effect: Effect.Effect<A, E, R>) =>
  Effect.provide(effect, FileStore.layer(folder))

const journalOf = (folder: string) => Effect.promise(() => readFile(join(folder, "journal.jsonl")))

const writeJournal = (folder: string, content: Uint8Array) =>
  Effect.promise(() => writeFile(join(folder, "journal.jsonl"), content))

const passing: Projection.Projection = { name: "passing", project: () => Effect.yieldNow() }

const stream = (aggregateId: string, first: number, length: number): Effect.Effect<ReadonlyArray<Event.Event>> =>
  Effect.forEach(
    Arr.makeBy(length, (index) => first + index),
    (sequence) =>
      Effect.gen(function* () {
        const timestamp = yield* (yield* Timestamp.HybridClock).now
        return { timestamp, aggregateId, sequence, type: "Happened", version: 1, body: { text: "é\n" }, metadata: {} }
      })
  )

const snapshot = (aggregateId: string, sequence: number): Effect.Effect<Snapshot.Snapshot> =>
  Effect.gen(function* () {
    const timestamp = yield* (yield* Timestamp.HybridClock).now
    return { timestamp, aggregateId, sequence, body: { state: sequence }, metadata: {} }
  })

// --- a disk that fails ---

/** Replaces a method of every open file, for one call. */
const replaceOnce = (
  method: "appendFile" | "datasync" | "truncate",
  replacement: (file: FileHandle, data: unknown) => Promise<void>
) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const handle = await open(tmpdir())
      await handle.close()
      const prototype: object = Object.getPrototypeOf(handle)
      const original: unknown = Reflect.get(prototype, method)
      const restore = () => Reflect.set(prototype, method, original)
      Reflect.set(prototype, method, function (this: FileHandle, data: unknown) {
        restore()
        return replacement(this, data)
      })
      return restore
    }),
    (restore) => Effect.sync(restore)
  )

const failed = (code: string): Error => Object.assign(new Error(`${code}: the disk failed`), { code })

const halfWritten = (code: string) =>
  replaceOnce("appendFile", async (file, data) => {
    const bytes = Buffer.from(String(data))
    await file.write(bytes.subarray(0, bytes.length >> 1))
    throw failed(code)
  })

/** Fails after the write: the line is in the file, and it is unknown whether it is on the disk. */
const notSynced = (code: string) => replaceOnce("datasync", () => Promise.reject(failed(code)))

const notCut = (code: string) => replaceOnce("truncate", () => Promise.reject(failed(code)))

/** The inodes of the folders and files, in the order in which they are synced. */
const recordSynced = Effect.map(
  Effect.acquireRelease(
    Effect.promise(async () => {
      const handle = await open(tmpdir())
      await handle.close()
      const prototype: FileHandle = Object.getPrototypeOf(handle)
      const original = prototype.sync
      const synced = new Set<number>()
      prototype.sync = async function (this: FileHandle) {
        await original.call(this)
        synced.add((await this.stat()).ino)
      }
      return { prototype, original, synced }
    }),
    ({ prototype, original }) =>
      Effect.sync(() => {
        prototype.sync = original
      })
  ),
  ({ synced }) => synced
)

const spawnWriter = (program: string, folder: string) =>
  spawnSync(process.execPath, [program, folder], {
    encoding: "utf8",
    env: { ...process.env, NODE_OPTIONS: "" }
  })

/** A process that is killed after it has created the first file of its lock. */
const killedOpener = useProgram(`
import fs from "node:fs/promises"
import { syncBuiltinESMExports } from "node:module"
import * as Effect from "effect/Effect"
import * as FileStore from ${JSON.stringify(fileURLToPath(new URL("../examples/custom-adapter/FileStore.ts", import.meta.url)))}
const die = () => process.kill(process.pid, "SIGKILL")
const { open } = fs
fs.rename = die
fs.open = (name, ...rest) => String(name).endsWith("journal.jsonl") ? die() : open(name, ...rest)
syncBuiltinESMExports()
FileStore.make(process.argv[2]).pipe(Effect.scoped, Effect.runPromise)
`)

/** A process that commits events, writes the number of acknowledged ones, and is killed during the next commit. */
const killedWriter = useProgram(`
import { writeSync } from "node:fs"
import * as Effect from "effect/Effect"
import { Timestamp } from "effect-maestro"
import * as FileStore from ${JSON.stringify(fileURLToPath(new URL("../examples/custom-adapter/FileStore.ts", import.meta.url)))}
Effect.gen(function* () {
  const store = yield* FileStore.make(process.argv[2])
  const { now } = yield* Timestamp.HybridClock
  for (let sequence = 1; ; sequence++) {
    const event = { timestamp: yield* now, aggregateId: "a", sequence, type: "Happened", version: 1, body: {}, metadata: {} }
    if (sequence === 20) {
      writeSync(1, String(sequence - 1))
      setImmediate(() => process.kill(process.pid, "SIGKILL"))
    }
    yield* store.commitEvents([event])
  }
}).pipe(Effect.scoped, Effect.runPromise)
`)
