/**
 * Reads PGN, the text form of chess games: splits a file into its games, and a game into headers and moves.
 *
 * The aggregate decides whether a move is legal, or a move at all.
 */
import { createHash } from "node:crypto"
import * as Schema from "effect/Schema"
import { Result } from "./GameEvent.js"

/** One game of a file. */
export interface PgnGame {
  /** Its place in the file, counted from 1. */
  readonly number: number
  /** The game as it stands in the file. */
  readonly text: string
  readonly headers: ReadonlyMap<string, string>
  /** The moves of the main line, with any other word that stands in the place of a move. */
  readonly moves: ReadonlyArray<string>
  /** Null in a game that goes on, or whose result is unknown. */
  readonly result: Result | null
}

/** The games of a file, in order. */
export const parse = (text: string): ReadonlyArray<PgnGame> => {
  const games: Array<PgnGame> = []
  let draft = new Draft()
  let depth = 0
  const next = () => {
    if (!draft.isEmpty) games.push(draft.game(games.length + 1, text))
    draft = new Draft()
    depth = 0
  }
  for (const { 0: token, groups = {}, index } of text.matchAll(lexer)) {
    if (groups.blank !== undefined) continue
    if (groups.tag !== undefined) {
      // Headers open a game, even if the game before has no result, or a comment without an end.
      if (draft.hasBegun || draft.headers.has(groups.tag)) next()
      draft.headers.set(groups.tag, (groups.value ?? "").replaceAll(/\\(["\\])/g, "$1"))
    } else if (groups.bracket !== undefined) {
      depth = Math.max(0, depth + (token === "(" ? 1 : -1))
    } else if (depth === 0) {
      // In a file without headers, only the results separate the games.
      if (draft.result !== undefined) next()
      if (groups.result === undefined) draft.moves.push(token.replace(/(?<=.)[!?]+$/, ""))
      else draft.result = token
    }
    draft.extend(index, index + token.length)
  }
  next()
  return games
}

/** The value of the first of these headers that has one. */
export const header = (game: PgnGame, ...tags: ReadonlyArray<string>): string | null =>
  tags.map((tag) => game.headers.get(tag)?.trim()).find((value) => value !== undefined && !/^[?.\s-]*$/.test(value)) ??
  null

/**
 * The id of a game, which is equal at every reading: its id at lichess, or else a hash of its headers, moves and
 * result.
 */
export const idOf = (game: PgnGame): string =>
  /^https?:\/\/lichess\.org\/(\w{8})$/.exec(header(game, "Site") ?? "")?.[1] ??
  createHash("sha256")
    .update(JSON.stringify([[...game.headers].sort(), game.moves, game.result]))
    .digest("hex")

/** The players, as a title for the game. */
export const titleOf = (game: PgnGame): string => `${header(game, "White") ?? "?"} – ${header(game, "Black") ?? "?"}`

// --- internal ---

/**
 * The tokens of PGN. All text belongs to some token, so that nothing is lost. A comment can hold anything but its end.
 * Where the headers of a game follow an empty line inside of a comment, its end is missing, and the comment ends there.
 */
const lexer = new RegExp(
  [
    /(?<blank>\s+|^%.*|;.*|\{(?:(?!\n\s*\n\s*\[\w+\s+")[^}])*\}|\$\d+|[!?]+(?=\s|$)|e\.p\.|\d*\.+|\d+(?=[\s{(;]|$))/,
    /\[\s*(?<tag>\w+)\s+"(?<value>.*?)"\s*\]/,
    /(?<bracket>[()])/,
    /(?<result>(?:1-0|0-1|1\/2-1\/2|\*)(?=[\s{();]|$))/,
    /[^\s(){};$[\]]+/,
    /\{.*|./
  ]
    .map(({ source }) => source)
    .join("|"),
  "gm"
)

/** A game that is being read. */
class Draft {
  readonly headers = new Map<string, string>()
  readonly moves: Array<string> = []
  result: string | undefined
  private start: number | undefined
  private end = 0

  get hasBegun(): boolean {
    return this.moves.length > 0 || this.result !== undefined
  }

  get isEmpty(): boolean {
    return this.moves.length === 0 && this.headers.size === 0
  }

  extend(start: number, end: number): void {
    this.start ??= start
    this.end = end
  }

  game(number: number, text: string): PgnGame {
    const result = this.result ?? this.headers.get("Result")
    return {
      number,
      text: text.slice(this.start, this.end),
      headers: this.headers,
      moves: this.moves,
      result: Schema.is(Result)(result) ? result : null
    }
  }
}
