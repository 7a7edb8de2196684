/**
 * Reads the games: from a given file, or the hundred rated games from lichess that chess.js brings along.
 */
import { createRequire } from "node:module"
import type { PlatformError } from "@effect/platform/Error"
import * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Pgn from "./Pgn.js"

/** There are no games to import. */
export class NoGames extends Schema.TaggedError<NoGames>()("NoGames", {
  file: Schema.String,
  reason: Schema.String
}) {
  override get message(): string {
    return `${this.file}: ${this.reason}`
  }
}

/** The games of the file, or only the first of them. */
export const read = Effect.fn("Source.read")(function* (path: Option.Option<string>, limit: Option.Option<number>) {
  const file = Option.getOrElse(path, () => createRequire(import.meta.url).resolve("chess.js/benchmarks/benchmark.pgn"))
  const fs = yield* FileSystem.FileSystem
  const text = yield* Effect.mapError(
    fs.readFileString(file),
    (error) => new NoGames({ file, reason: reasonOf(error) })
  )
  const games = Pgn.parse(text)
  if (games.length === 0) return yield* new NoGames({ file, reason: "there is no game in this file" })
  return games.slice(0, Option.getOrUndefined(limit))
})

// --- internal ---

const reasonOf = (error: PlatformError): string =>
  error._tag === "SystemError" && error.reason === "NotFound" ? "there is no such file" : error.message
