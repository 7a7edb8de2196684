/** The page of the chess example: its API refuses bad input, its event stream shows moves, and it ends on SIGTERM. */
import { spawn } from "node:child_process"
import { once } from "node:events"
import { readFileSync } from "node:fs"
import { connect } from "node:net"
import { fileURLToPath } from "node:url"
import * as HttpServer from "@effect/platform/HttpServer"
import { expect, it, vi } from "@effect/vitest"
import * as Chunk from "effect/Chunk"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as SubscriptionRef from "effect/SubscriptionRef"
import * as TestClock from "effect/TestClock"
import { EventFeed, MemoryStore } from "effect-maestro"
import * as Live from "../examples/chess/Live.js"
import { layerServer, layerStore } from "../examples/chess/Server.js"
import { openPage } from "./chessPageScript.js"
import { layerPg } from "./database.js"
import { ask, send } from "./httpServer.js"
import { useProgram } from "./program.js"

/** A store that counts the readers that wait for further events. */
const layerCounting = (waiting: SubscriptionRef.SubscriptionRef<number>) => {
  const add = (count: number) => SubscriptionRef.update(waiting, (before) => before + count)
  return Layer.effect(
    EventFeed.EventFeed,
    Effect.map(EventFeed.EventFeed, (feed) => ({
      ...feed,
      awaitAppend: (...args: Parameters<typeof feed.awaitAppend>) =>
        Effect.acquireUseRelease(
          add(1),
          () => feed.awaitAppend(...args),
          () => add(-1)
        )
    }))
  ).pipe(Layer.provideMerge(layerStore(layerPg())))
}

/** Serves the page. It can be closed before the test ends. */
const serve = Effect.gen(function* () {
  const waiting = yield* SubscriptionRef.make(0)
  const scope = yield* Effect.acquireRelease(Scope.make(), (scope) => Scope.close(scope, Exit.void))
  const context = yield* Layer.buildWithScope(layerServer(0, layerCounting(waiting)), scope)
  const { address } = Context.get(context, HttpServer.HttpServer)
  return {
    url: address._tag === "TcpAddress" ? `http://127.0.0.1:${address.port}` : address.path,
    close: Scope.close(scope, Exit.void),
    /** Waits until so many readers wait for further events. */
    readers: (count: number) =>
      waiting.changes.pipe(
        Stream.filter((now) => now === count),
        Stream.take(1),
        Stream.runDrain
      )
  }
})

/** Opens the event stream. */
const listen = (url: string) =>
  Effect.promise(async () => {
    const controller = new AbortController()
    const response = await fetch(`${url}/events`, { signal: controller.signal })
    expect(response.headers.get("content-type")).toBe("text/event-stream")
    const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader()
    let text = ""
    /** Reads on until the text has a part. It returns the text, which then begins anew. */
    const until = async (part: string) => {
      while (!text.includes(part)) {
        const { done = true, value } = (await reader?.read()) ?? {}
        if (done) throw new Error(`the stream ended after: ${text}`)
        text += value
      }
      const read = text
      text = ""
      return read
    }
    return {
      hangUp: Effect.sync(() => controller.abort()),
      until: (part: string) => Effect.promise(() => until(part)),
      /** Reads to the end. It fails where the connection was cut. */
      end: Effect.promise(async () => {
        while (!((await reader?.read())?.done ?? true)) {}
      })
    }
  })

const messagesOf = (text: string) =>
  [...text.matchAll(/^data: (\{"game".*\})$/gm)].map(([, json = ""]) => JSON.parse(json))

const game = {
  white: { name: "<b>Ann</b>", rating: 1500 },
  black: { name: "Bob", rating: null },
  event: null,
  site: null,
  playedAt: null,
  timeControl: null,
  eco: null,
  opening: null,
  fen: null
}

it.scopedLive("every browser sees a move that is made meanwhile, and can step back from it", () =>
  Effect.gen(function* () {
    const { readers, url } = yield* serve
    const browsers = [yield* listen(url), yield* listen(url)]
    for (const { until } of browsers) yield* until("event: ready")
    expect((yield* send(url, "/games/g1/start", game)).status).toBe(200)
    expect((yield* send(url, "/games/g1/moves", { ply: 1, san: "e4" })).status).toBe(200)
    for (const { until } of browsers) {
      const messages = messagesOf(yield* until('"san":"e4"'))
      expect(messages).toMatchObject([
        { game: "g1", sequence: 1, event: { _tag: "GameStarted", white: { name: "<b>Ann</b>" } } },
        { game: "g1", sequence: 2, event: { _tag: "MovePlayed", ply: 1, san: "e4" } }
      ])
    }
    expect((yield* ask(url, "/games")).body).toEqual([
      { id: "g1", white: "<b>Ann</b>", black: "Bob", opening: "?", result: null }
    ])
    expect((yield* ask(url, "/games/g1/moves")).body).toEqual([{ sequence: 2, san: "e4" }])
    expect((yield* ask(url, "/games/g1/at/1")).body).toMatchObject({
      ply: 0,
      fen: "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1"
    })
    expect((yield* ask(url, "/games/g1/at/2")).body).toMatchObject({
      ply: 1,
      fen: "rnbqkbnr/pppppppp/8/8/4P3/8/PPPP1PPP/RNBQKBNR b KQkq - 0 1"
    })
    // A browser that connects later receives later events only, because it reads the games itself.
    const late = yield* listen(url)
    yield* late.until("event: ready")
    expect((yield* send(url, "/games/g1/end", { ply: 1, result: "1-0", termination: null })).status).toBe(200)
    expect(messagesOf(yield* late.until("GameEnded"))).toMatchObject([{ sequence: 3, event: { result: "1-0" } }])
    yield* readers(3)
  })
)

it.scopedLive("a browser that hangs up leaves no reader of the feed, and the others stay", () =>
  Effect.gen(function* () {
    const { readers, url } = yield* serve
    const first = yield* listen(url)
    const second = yield* listen(url)
    yield* readers(2)
    yield* first.hangUp
    yield* readers(1)
    expect((yield* send(url, "/games/g1/start", game)).status).toBe(200)
    yield* second.until("GameStarted")
    yield* second.hangUp
    yield* readers(0)
  })
)

it.scopedLive("an event stream ends in full when the server closes, and the server does not wait for it", () =>
  Effect.gen(function* () {
    const { close, readers, url } = yield* serve
    const browser = yield* listen(url)
    yield* readers(1)
    yield* close
    yield* browser.end
    yield* readers(0)
  })
)

it.effect("an event stream has a comment every 15 seconds, so that writing finds out that a browser is gone", () =>
  Effect.gen(function* () {
    const reading = yield* Effect.fork(Stream.runCollect(Stream.take(Live.messages, 3)))
    yield* TestClock.adjust("30 seconds")
    const [ready, ...comments] = Chunk.toReadonlyArray(yield* Fiber.join(reading))
    expect(ready).toContain("event: ready")
    expect(comments).toEqual([": still here\n\n", ": still here\n\n"])
  }).pipe(Effect.provide(MemoryStore.layer))
)

it.scopedLive("illegal moves and bad input have a status and a reason, and store nothing", () =>
  Effect.gen(function* () {
    const { url } = yield* serve
    const move = (san: unknown, ply: unknown = 1) => send(url, "/games/g1/moves", { ply, san })
    expect(yield* move("e4")).toMatchObject({ status: 404, body: { _tag: "NotStarted" } })
    expect(yield* send(url, "/games/g1/start", { ...game, fen: "8/8" })).toMatchObject({
      status: 422,
      body: { _tag: "InvalidPosition", fen: "8/8" }
    })
    expect((yield* ask(url, "/games")).body).toEqual([])
    expect((yield* send(url, "/games/g1/start", game)).status).toBe(200)
    expect(yield* send(url, "/games/g1/start", game)).toMatchObject({ status: 409, body: { _tag: "AlreadyStarted" } })
    for (const san of ["e5", "--", "O-O", "<script>", "\u0000", "\ud800", "é4", "e4 e5", "x".repeat(5000)]) {
      const { body, status } = yield* move(san)
      expect([san, status, body._tag]).toEqual([san, 422, "IllegalMove"])
    }
    expect(yield* move("e4", 2)).toMatchObject({ status: 409, body: { _tag: "WrongPly", expected: 1 } })
    for (const [san, ply] of [
      ["", 1],
      [7, 1],
      ["e4", "1"],
      ["e4", -1],
      ["e4", null]
    ]) {
      expect(yield* move(san, ply)).toMatchObject({ status: 400, body: { _tag: "HttpApiDecodeError" } })
    }
    expect((yield* move("x".repeat(20_000))).status).toBe(413)
    expect((yield* send(url, "/games/g1/moves", "{")).status).toBe(400)
    expect((yield* send(url, "/games/g1/moves", "{}", { "content-type": "text/plain" })).status).toBe(415)
    expect((yield* send(url, "/games/%00/start", game)).status).toBe(400)
    for (const name of ["\u0000", "\ud800"]) {
      const started = yield* send(url, "/games/g2/start", { ...game, white: { name, rating: null } })
      expect([name, started.status]).toEqual([name, 400])
    }
    for (const sequence of ["0", "-1", "2", "1.5", "x", "1e99", "NaN", "Infinity", "%00"]) {
      expect([sequence, (yield* ask(url, `/games/g1/at/${sequence}`)).status]).toEqual([sequence, 400])
    }
    for (const path of ["/games/g2/moves", "/games/g2/at/1", "/games/g2", "/nothing"]) {
      expect([path, (yield* ask(url, path)).status]).toEqual([path, 404])
    }
    for (const path of ["/games/%00/moves", "/games/%00/at/1", `/games/${"%20"}${"x".repeat(80)}%00/moves`]) {
      expect([path, (yield* ask(url, path)).status]).toEqual([path, 400])
    }
    expect((yield* ask(url, "/games/g1/moves")).body).toEqual([])
    expect((yield* ask(url, "/games")).body).toHaveLength(1)
  })
)

it.scopedLive("the page has all that its script uses, and names no other host", () =>
  Effect.gen(function* () {
    const { url } = yield* serve
    const response = yield* Effect.promise(() => fetch(url))
    const page = yield* Effect.promise(() => response.text())
    expect(response.headers.get("content-type")).toContain("text/html")
    expect(response.headers.get("content-security-policy")).toContain("default-src 'none'")
    expect(page).not.toMatch(/https?:|\/\/\w/)
    const [, script = ""] = /<script type="module">(.*)<\/script>/s.exec(page) ?? []
    expect(() => new Function(`return async () => {${script}}`)).not.toThrow()
    const ids = [...script.matchAll(/field\("(\w+)"\)/g)].map(([, id]) => id)
    expect(ids).toEqual(expect.arrayContaining(["first", "back", "forward", "last", "games", "board"]))
    for (const id of ids) expect(page).toContain(`id="${id}"`)
    expect(script).not.toContain("innerHTML")
  })
)

/** The page in a browser that the scope closes. */
const browse = (url: string) =>
  Effect.map(
    Effect.acquireRelease(
      Effect.promise(async () => {
        const controller = new AbortController()
        return { controller, field: await openPage(url, controller.signal) }
      }),
      ({ controller }) => Effect.sync(() => controller.abort())
    ),
    ({ field }) => ({
      field,
      /** Waits until the page shows a ply, and has the piece on each of these squares, counted from a8. */
      shows: (place: string, squares: Readonly<Record<number, string>>) =>
        Effect.promise(() =>
          vi.waitFor(
            () => {
              expect(field("place").textContent).toBe(place)
              const board = field("board").children.map(({ textContent }) => textContent)
              expect(board).toHaveLength(64)
              for (const [square, piece] of Object.entries(squares)) expect(board[Number(square)]).toBe(piece)
            },
            { timeout: 10_000, interval: 10 }
          )
        )
    })
  )

it.scopedLive("the buttons of the page step through the game, and the page follows moves while it shows the last", () =>
  Effect.gen(function* () {
    const { url } = yield* serve
    yield* send(url, "/games/g1/start", game)
    const { field, shows } = yield* browse(url)
    yield* Effect.promise(() => vi.waitFor(() => expect(field("games").children).toHaveLength(1), 10_000))
    field("games").fire("click", { target: field("games").children[0]?.children[0] })
    yield* shows("ply 0 of 0", { 52: "♙", 36: "" })
    field("san").value = "e4"
    field("play").fire("submit")
    yield* shows("ply 1 of 1", { 52: "", 36: "♙" })
    yield* send(url, "/games/g1/moves", { ply: 2, san: "c5" })
    yield* shows("ply 2 of 2", { 36: "♙", 26: "♟" })
    field("first").fire("click")
    yield* shows("ply 0 of 2", { 52: "♙", 26: "" })
    yield* send(url, "/games/g1/moves", { ply: 3, san: "Nf3" })
    yield* shows("ply 0 of 3", { 52: "♙", 45: "" })
    field("forward").fire("click")
    yield* shows("ply 1 of 3", { 36: "♙", 26: "" })
    field("last").fire("click")
    yield* shows("ply 3 of 3", { 45: "♘" })
    field("back").fire("click")
    yield* shows("ply 2 of 3", { 45: "", 26: "♟" })
    field("san").value = "Ke4"
    field("play").fire("submit")
    yield* Effect.promise(() =>
      vi.waitFor(() => expect(field("problem").textContent).toBe("Ke4 is not a legal move here"), 10_000)
    )
  })
)

const folder = fileURLToPath(new URL("../examples/chess/", import.meta.url))
const program = useProgram(readFileSync(`${folder}page.ts`, "utf8"), folder)

/** Runs the example in its own process, on a free port. The scope kills the process. */
const start = Effect.acquireRelease(
  Effect.promise(async () => {
    const child = spawn(process.execPath, [program()], {
      stdio: ["ignore", "pipe", "inherit"],
      env: { ...process.env, PORT: "0", DATABASE_URL: undefined }
    })
    const port = await new Promise<number>((resolve, reject) => {
      let text = ""
      child.stdout.on("data", (data) => {
        text += data
        const [, found] = /Listening on http:\/\/[^:]*:(\d+)/.exec(text) ?? []
        if (found !== undefined) resolve(Number(found))
      })
      child.once("exit", () => reject(new Error(`the example ended: ${text}`)))
    })
    return { child, port }
  }),
  ({ child }) => Effect.sync(() => child.kill("SIGKILL"))
)

it.scopedLive("the example imports games while it serves them, and ends on SIGTERM with clients that stay", () =>
  Effect.gen(function* () {
    const { child, port } = yield* start
    const url = `http://127.0.0.1:${port}`
    const browser = yield* listen(url)
    yield* browser.until('"_tag":"MovePlayed"')
    expect((yield* ask(url, "/games")).body.length).toBeGreaterThan(0)
    // A client that does not send its request to the end.
    const half = connect(port, "127.0.0.1")
    half.on("error", () => {})
    yield* Effect.promise(() => once(half, "connect"))
    half.write("POST /games/g1/moves HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
    child.kill("SIGTERM")
    yield* Effect.promise(() => once(child, "exit"))
    expect(child.signalCode).toBe(null)
  })
)
