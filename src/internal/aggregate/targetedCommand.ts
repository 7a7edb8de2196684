/**
 * Commands as values, with the aggregate that they are for: what `command` of an aggregate makes, and
 * `Aggregate.evaluateAll` takes. `Aggregate.ts` exports the types.
 */
import type * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import { identity } from "effect/Function"
import type * as Types from "effect/Types"
import type { Failure, Instance } from "../../Aggregate.js"
import type { CommandIdReused, CommandRefused, UnexpectedSequence } from "../../StoreError.js"
import type { Tagged } from "../codec/eventCodec.js"
import type { SeveralElsewhere, SeveralLayer } from "./member.js"

/** The key of what `evaluateAll` alone reads of a command. */
export const TypeId: unique symbol = Symbol.for("effect-maestro/Aggregate/TargetedCommand")

/**
 * A command with the aggregate that it is for: a value that `command` of an aggregate makes, for `evaluateAll`. Its
 * type has the result of the command and its refusals.
 *
 * @since 0.1.0
 * @category models
 */
export interface TargetedCommand<out Name extends string, out Answer, out Refusal, out Conflict = never> {
  /** The name of the aggregate. */
  readonly aggregate: Name
  readonly id: string
  readonly command: unknown
  /** The sequence that the aggregate must be at. */
  readonly expectedSequence?: number | undefined
  /** @internal */
  readonly [TypeId]: {
    readonly layerIn: (context: Context.Context<never>) => SeveralLayer | SeveralElsewhere
    readonly _Answer: Types.Covariant<Answer>
    readonly _Refusal: Types.Covariant<Refusal>
    readonly _Conflict: Types.Covariant<Conflict>
  }
}

/**
 * @since 0.1.0
 * @category models
 */
export declare namespace TargetedCommand {
  /**
   * Any command with its aggregate.
   *
   * @since 0.1.0
   * @category models
   */
  export type Any = TargetedCommand<string, unknown, unknown, unknown>

  /**
   * Makes a command of an aggregate. `Refusals` has the failures of each command's handler.
   *
   * @since 0.1.0
   * @category models
   */
  export interface Make<
    Name extends string,
    Id extends string,
    Answer,
    C extends Tagged,
    Refusals extends { readonly [K in C["_tag"]]: unknown },
    Projected
  > {
    <K extends C>(id: Id, command: K): TargetedCommand<Name, Answer, Refusals[K["_tag"]] | Projected>
    /** It is decided only while the aggregate is at the expected sequence, if there is one. */
    <K extends C>(
      id: Id,
      command: K,
      options: Options
    ): TargetedCommand<Name, Answer, Refusals[K["_tag"]] | Projected, UnexpectedSequence>
  }

  /**
   * The options of a command.
   *
   * @since 0.1.0
   * @category models
   */
  export interface Options {
    /** The sequence that the aggregate must be at when the command is decided, or `undefined` for any. */
    readonly expectedSequence: number | undefined
  }

  /**
   * The results of commands, in their order.
   *
   * @since 0.1.0
   * @category models
   */
  export type Answers<Commands extends ReadonlyArray<Any>> = {
    readonly [K in keyof Commands]: Commands[K] extends TargetedCommand<string, infer Answer, unknown, unknown>
      ? Answer
      : never
  }

  /**
   * The failures of a command in `evaluateAll`. Those of the library are as they are, and every other is a
   * `CommandRefused`.
   *
   * @since 0.1.0
   * @category models
   */
  export type Error<Command> =
    Command extends TargetedCommand<infer Name, unknown, infer Refusal, infer Conflict>
      ? Conflict | Extract<Refusal, LibraryFailure> | Refused<Name, Exclude<Refusal, LibraryFailure>>
      : never

  /**
   * The evaluation of a list of commands.
   *
   * @since 0.1.0
   * @category models
   */
  export type Evaluation<Commands extends ReadonlyArray<Any>> = Effect.Effect<
    Answers<Commands>,
    Error<Commands[number]> | Failure,
    Context<Commands[number]>
  >

  /**
   * The service that a command needs.
   *
   * @since 0.1.0
   * @category models
   */
  export type Context<Command> =
    Command extends TargetedCommand<infer Name, unknown, unknown, unknown> ? Instance<Name> : never
}

/** Makes a command with its aggregate. */
export const makeTargetedCommand = <const Name extends string>(
  aggregate: Name,
  layerIn: (context: Context.Context<never>) => SeveralLayer | SeveralElsewhere,
  id: string,
  command: unknown,
  options: TargetedCommand.Options | undefined
): TargetedCommand<Name, never, never> => ({
  aggregate,
  id,
  command,
  expectedSequence: options?.expectedSequence,
  [TypeId]: { layerIn, _Answer: identity, _Refusal: identity, _Conflict: identity }
})

/** Whether `command` of an aggregate made the value. */
export const isTargetedCommand = (value: unknown): value is TargetedCommand.Any =>
  typeof value === "object" && value !== null && TypeId in value

// --- internal ---

type LibraryFailure = Failure | CommandIdReused | UnexpectedSequence

type Refused<Name extends string, E> = [E] extends [never] ? never : CommandRefused<Name, E>
