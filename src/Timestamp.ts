/**
 * Hybrid logical time: `Timestamp` values, and the `HybridClock` that makes them. `Aggregate` stamps every event.
 *
 * A timestamp is the identity of an event. It is unique across nodes, and rises along an aggregate even if the clocks
 * of the writing nodes differ. It has 16 bytes in the form of a UUIDv7 (RFC 9562), so it sorts as text and as a
 * database's `uuid`, and any UUID tool reads it:
 *
 * ```text
 * 48 bits  milliseconds since 1970
 *  4 bits  version (7)
 * 12 bits  counter within the millisecond
 *  2 bits  variant
 * 62 bits  node
 * ```
 *
 * The algorithm is that of Kulkarni et al., "Logical Physical Clocks and Consistent Snapshots in Globally Distributed
 * Databases" (2014). Maestro's `HLClock` uses the same algorithm with other widths.
 *
 * @since 0.1.0
 */
import type * as Brand from "effect/Brand"
import type * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { StoreError, ValidationError, ValidationIssue } from "./StoreError.js"

/**
 * A hybrid logical timestamp: a UUIDv7 in lower-case text.
 *
 * @since 0.1.0
 * @category models
 */
export type Timestamp = string & Brand.Brand<"effect-maestro/Timestamp">

/**
 * Whether a value is a timestamp.
 *
 * @since 0.1.0
 * @category guards
 */
export const isTimestamp = (u: unknown): u is Timestamp => typeof u === "string" && pattern.test(u)

/**
 * The schema of a timestamp, decoding from text.
 *
 * @since 0.1.0
 * @category schemas
 */
export const Timestamp: Schema.Schema<Timestamp, string> = Schema.String.pipe(
  Schema.filter(isTimestamp, {
    identifier: "Timestamp",
    description: "a UUIDv7 in lower case",
    message: () => "Expected a timestamp: a UUIDv7 in lower case"
  })
)

/**
 * The parts of a timestamp.
 *
 * @since 0.1.0
 * @category models
 */
export interface Parts {
  /** Milliseconds since 1970, at most 2^48 - 1. */
  readonly millis: number
  /** Counter within the millisecond, 0 … 4095. */
  readonly counter: number
  /** The node that made it, 62 bits. */
  readonly node: bigint
}

/**
 * Makes a timestamp of its parts. Parts out of range are cut to their range.
 *
 * @since 0.1.0
 * @category constructors
 */
export const fromParts = (parts: Parts): Timestamp =>
  format(clamp(parts.millis, maxMillis), clamp(parts.counter, maxCounter), formatNode(parts.node))

/**
 * The parts of a timestamp.
 *
 * @since 0.1.0
 * @category getters
 */
export const toParts = (timestamp: Timestamp): Parts => ({
  millis: millisOf(timestamp),
  counter: counterOf(timestamp),
  node: BigInt(`0x${timestamp.slice(19, 23)}${timestamp.slice(24)}`) & nodeMask
})

/**
 * The physical part of a timestamp, to the millisecond. It can be ahead of the wall clock by the difference between the
 * clocks of the nodes.
 *
 * @since 0.1.0
 * @category getters
 *
 * @example
 * ```ts
 * import { Timestamp } from "effect-maestro"
 * import * as DateTime from "effect/DateTime"
 *
 * const timestamp = Timestamp.fromParts({ millis: 1_700_000_000_000, counter: 0, node: 1n })
 * console.log(DateTime.formatIso(Timestamp.toDateTime(timestamp))) // prints: 2023-11-14T22:13:20.000Z
 * ```
 */
export const toDateTime = (timestamp: Timestamp): DateTime.Utc => DateTime.unsafeMake(millisOf(timestamp))

/**
 * A point in time, for reads as of a time. Such a read has the events whose `toMillis` is not above it.
 *
 * The milliseconds of an event are those of the clock of the node that made it. They are higher where the aggregate has
 * an event of a node whose clock is ahead, because timestamps rise along an aggregate. So a read as of a time is as exact
 * as the clocks of the nodes. Near that time it may leave out an event that was made before, or have one that was made
 * after.
 *
 * @since 0.1.0
 * @category models
 */
export type Time = DateTime.DateTime | Date

/**
 * Milliseconds since 1970 of a timestamp.
 *
 * @since 0.1.0
 * @category getters
 */
export const toMillis = (timestamp: Timestamp): number => millisOf(timestamp)

/**
 * The operations of a hybrid clock.
 *
 * @since 0.1.0
 * @category models
 */
export interface HybridClockService {
  /**
   * The next timestamp. It is higher than every timestamp that this clock gave or received before. If the wall clock
   * stalls or jumps back, the counter rises, and the milliseconds rise when the counter is full. It never fails.
   */
  readonly now: Effect.Effect<Timestamp>
  /**
   * Receives a timestamp of another node, so that the next `now` is higher. Fails with `ClockDrift`, and does not
   * change the clock, if the timestamp is ahead of this clock and more than `maxDrift` ahead of the wall clock. Any
   * other value fails with `ValidationError`.
   */
  readonly receive: (timestamp: Timestamp) => Effect.Effect<void, StoreError | ValidationError>
  /** `now` without an effect, by a given wall clock. `now` uses the `Clock` of its fiber. */
  readonly unsafeNow: (clock: Clock.Clock) => Timestamp
  /** `receive` without an effect, by a given wall clock. Returns why the timestamp is refused, or `undefined`. */
  readonly unsafeReceive: (timestamp: Timestamp, clock: Clock.Clock) => StoreError | ValidationError | undefined
}

/**
 * The service that makes timestamps. By default there is one clock for the process, with a random node id and a
 * `maxDrift` of an hour; `layerWith` sets either.
 *
 * Its time is the time of Effect's `Clock`, so `TestClock` drives it. Each `Clock` has a time line and a node id of its
 * own.
 *
 * @since 0.1.0
 * @category tags
 */
export class HybridClock extends Context.Reference<HybridClock>()("effect-maestro/HybridClock", {
  defaultValue: (): HybridClockService => make()
}) {}

/**
 * The options of a clock.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options {
  /**
   * The id of this node, 62 bits. It must differ between any two processes that write to one store. By default it is
   * drawn from the system's secure random numbers at the first use of the clock.
   */
  readonly node?: bigint | undefined
  /**
   * How far a received timestamp may be ahead of the local wall clock; an hour by default. A higher bound tolerates
   * larger differences between clocks. A lower bound stops a node with a wrong clock from advancing the time of the
   * others.
   */
  readonly maxDrift?: Duration.DurationInput | undefined
}

/**
 * Makes a clock.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = (options?: Options): HybridClockService => {
  const maxDrift = Duration.toMillis(options?.maxDrift ?? Duration.hours(1))
  // One time line for each `Clock`, because a test that runs in 1970 must not see the time of another test.
  const lines = new WeakMap<Clock.Clock, TimeLine>()
  const lineOf = (clock: Clock.Clock): TimeLine => {
    const known = lines.get(clock)
    if (known !== undefined) return known
    const line: TimeLine = {
      millis: 0,
      counter: -1,
      node: formatNode(options?.node ?? randomNode()),
      prefix: "",
      last: ""
    }
    lines.set(clock, line)
    return line
  }
  const unsafeNow = (clock: Clock.Clock): Timestamp => tick(lineOf(clock), clock.unsafeCurrentTimeMillis())
  const unsafeReceive = (timestamp: Timestamp, clock: Clock.Clock): StoreError | ValidationError | undefined => {
    // A bad timestamp would leave this clock without a time.
    if (!isTimestamp(timestamp)) return noTimestamp
    const line = lineOf(clock)
    if (timestamp <= line.last) return undefined
    const wall = clock.unsafeCurrentTimeMillis()
    const millis = millisOf(timestamp)
    const counter = counterOf(timestamp)
    // A timestamp behind this clock is accepted, so a node whose wall clock jumped back still accepts its own events.
    if (millis < line.millis || (millis === line.millis && counter <= line.counter)) return undefined
    if (millis - wall > maxDrift) return clockDrift(timestamp, millis - wall, maxDrift, clock)
    moveTo(line, millis, counter)
    return undefined
  }
  return {
    now: Effect.clockWith((clock) => Effect.succeed(unsafeNow(clock))),
    receive: (timestamp) =>
      Effect.clockWith((clock) => {
        const refused = unsafeReceive(timestamp, clock)
        return refused === undefined ? Effect.void : Effect.fail(refused)
      }),
    unsafeNow,
    unsafeReceive
  }
}

/**
 * A clock with these options, for the layers and effects that it is provided to.
 *
 * @since 0.1.0
 * @category layers
 *
 * @example
 * ```ts
 * import { MemoryStore, Timestamp } from "effect-maestro"
 * import * as Layer from "effect/Layer"
 *
 * export const StoreLive = MemoryStore.layer.pipe(
 *   Layer.provideMerge(Timestamp.layerWith({ node: 7n, maxDrift: "5 minutes" }))
 * )
 * ```
 */
export const layerWith = (options: Options): Layer.Layer<HybridClock> => Layer.sync(HybridClock, () => make(options))

// --- internal ---

interface TimeLine {
  millis: number
  counter: number
  readonly node: string
  /** The text of `millis`, as timestamps begin. Empty before the first timestamp and after a received one. */
  prefix: string
  /** The last timestamp of this line, or an empty text before the first. Timestamps sort as text. */
  last: string
}

const pattern = /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/
const maxMillis = 2 ** 48 - 1
const maxCounter = 0xfff
const nodeMask = (1n << 62n) - 1n

const tick = (line: TimeLine, wall: number): Timestamp => {
  const now = clamp(wall, maxMillis)
  if (now > line.millis) moveTo(line, now, 0)
  else if (line.counter < maxCounter) line.counter++
  else moveTo(line, line.millis + 1, 0)
  if (line.prefix === "") line.prefix = formatMillis(line.millis)
  const timestamp = `${line.prefix}${formatCounter(line.counter)}-${line.node}` as Timestamp
  line.last = timestamp
  return timestamp
}

const moveTo = (line: TimeLine, millis: number, counter: number): void => {
  line.millis = millis
  line.counter = counter
  line.prefix = ""
}

const clamp = (value: number, max: number): number => Math.min(Math.max(Math.trunc(value) || 0, 0), max)

const format = (millis: number, counter: number, node: string): Timestamp =>
  `${formatMillis(millis)}${formatCounter(counter)}-${node}` as Timestamp

/** The first two groups of the UUID. */
const formatMillis = (millis: number): string => {
  const time = millis.toString(16).padStart(12, "0")
  return `${time.slice(0, 8)}-${time.slice(8)}-`
}

/** The third group of the UUID: version 7, then the counter. */
const formatCounter = (counter: number): string => (0x7000 + counter).toString(16)

/** The last two groups of the UUID: variant `10`, then the 62 bits. */
const formatNode = (node: bigint): string => {
  const text = ((node & nodeMask) | (1n << 63n)).toString(16)
  return `${text.slice(0, 4)}-${text.slice(4)}`
}

const millisOf = (timestamp: Timestamp): number => Number.parseInt(timestamp.slice(0, 8) + timestamp.slice(9, 13), 16)

const counterOf = (timestamp: Timestamp): number => Number.parseInt(timestamp.slice(15, 18), 16)

// Not from Effect's `Random`, because a program that seeds it would have one node id on all nodes. Then a commit of one
// node could look like a repetition of a commit of another.
const randomNode = (): bigint => {
  const [high, low] = crypto.getRandomValues(new Uint32Array(2))
  return (BigInt(high ?? 0) << 32n) | BigInt(low ?? 0)
}

const clockDrift = (timestamp: Timestamp, drift: number, maxDrift: number, clock: Clock.Clock): StoreError => {
  const reason = isTestClock(clock)
    ? `this clock is TestClock, which stands at ${new Date(clamp(clock.unsafeCurrentTimeMillis(), maxMillis)).toISOString()}, while another clock made the timestamp. Set it by TestClock.setTime, or run the test on the live clock (\`it.live\`, or \`excludeTestServices: true\` of @effect/vitest's \`layer\`)`
    : "the clock of a node is wrong"
  return new StoreError({
    reason: "ClockDrift",
    operation: "HybridClock.receive",
    description: `timestamp ${timestamp} is ${drift} ms ahead of this node's clock, more than the ${maxDrift} ms allowed: ${reason}`
  })
}

/** Recognized by its methods, so that programs do not load the module of `TestClock` for this message. */
const isTestClock = (clock: Clock.Clock): boolean => "setTime" in clock && "adjust" in clock

const noTimestamp = new ValidationError({
  operation: "HybridClock.receive",
  issues: [new ValidationIssue({ path: [], message: "must be a timestamp: a UUIDv7 in lower case" })]
})
