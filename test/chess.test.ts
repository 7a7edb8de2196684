/** The import of chess games refuses games that it can't replay. */

import { NodeTerminal } from "@effect/platform-node"
import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { SqlStore } from "effect-maestro"
import { Game } from "../examples/chess/Game.js"
import { importGames } from "../examples/chess/Import.js"
import { parse } from "../examples/chess/Pgn.js"
import * as Projections from "../examples/chess/Projections.js"
import { layerPglite } from "./database.js"

const games = Game.layer.pipe(
  Layer.provide(Projections.layerTables),
  Layer.provideMerge(SqlStore.layer),
  Layer.provideMerge(layerPglite)
)

const game = (white: string, variant: string | undefined) =>
  [
    `[White "${white}"]`,
    '[Black "Black"]',
    ...(variant === undefined ? [] : [`[Variant "${variant}"]`]),
    "",
    "1. e4 e5 *",
    "",
    ""
  ].join("\n")

it.live(
  "a game of a chess variant is refused with the variant's name, and stores nothing",
  () =>
    Effect.gen(function* () {
      const variants = [undefined, "Standard", "From Position", "Chess960", "chess 960", "Atomic"]
      const imported = yield* importGames(
        parse(variants.map((variant, index) => game(`White ${index}`, variant)).join(""))
      )
      expect(imported.games.map(({ game }) => game.number)).toEqual([1, 2, 3])
      expect(imported.broken.map(({ message }) => message)).toEqual([
        expect.stringContaining("a game of Chess960"),
        expect.stringContaining("a game of chess 960"),
        expect.stringContaining("a game of Atomic")
      ])
      expect(imported.tally).toMatchObject({ moves: 6 })
    }).pipe(Effect.provide([games, NodeTerminal.layer])),
  60_000
)
