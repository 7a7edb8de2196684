/**
 * Compiles an aggregate and the options of `AggregateHttp.make` to a plan: names, paths, schemas and statuses of the
 * endpoints. Options that can't work throw a `TypeError` here, when the endpoints are made.
 */
import type { PathSegment } from "@effect/platform/HttpApiEndpoint"
import * as HttpApiSchema from "@effect/platform/HttpApiSchema"
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type { Root } from "../../Aggregate.js"
import type { Source } from "../aggregate/declaring.js"
import { schemasByTag, type Tagged } from "../codec/eventCodec.js"
import { type ViewSchemas, viewSchemas } from "./schemas.js"

/** A refusal of a command, with the status of its response. */
export interface PlannedRefusal {
  readonly schema: Schema.Schema<unknown, unknown>
  /** Its tag, or those of the members of its schema. */
  readonly tags: ReadonlyArray<string>
  readonly status: number
  readonly is: (failure: unknown) => boolean
}

export interface PlannedCommand<C> {
  readonly tag: string
  /** The name of its endpoint. */
  readonly name: string
  /** Its path below that of the aggregate. */
  readonly path: PathSegment
  readonly schema: Schema.Schema<C, Tagged>
  readonly refusals: ReadonlyArray<PlannedRefusal>
}

export interface Plan<State, C, Id extends string> {
  readonly group: string
  /** The path of an aggregate, with `:id`. */
  readonly path: PathSegment
  readonly commands: ReadonlyArray<PlannedCommand<C>>
  readonly view: (root: Root<State, Id>) => unknown
  readonly schemas: ViewSchemas
  readonly correlationHeader: string | undefined
  /** Seconds. */
  readonly retryAfter: number
  readonly maxBodySize: number
}

/** The options of `AggregateHttp.make`, with their types left open. */
export interface PlanOptions<State, Id extends string> {
  readonly name?: string | undefined
  readonly path?: PathSegment | undefined
  readonly only?: ReadonlyArray<string> | undefined
  readonly paths?: Readonly<Record<string, PathSegment | undefined>> | undefined
  readonly statuses?: Readonly<Record<string, number | undefined>> | undefined
  readonly view?:
    | { readonly schema: Schema.Schema.AnyNoContext; readonly of: (root: Root<State, Id>) => unknown }
    | undefined
  readonly correlationHeader?: string | undefined
  readonly retryAfter?: Duration.DurationInput | undefined
  readonly maxBodySize?: number | undefined
}

export const makePlan = <Name extends string, State, C extends Tagged, CI, Declared, Id extends string>(
  aggregate: Source<Name, State, C, CI, Declared, Id>,
  options: PlanOptions<State, Id>
): Plan<State, C, Id> => {
  const { name } = aggregate
  return {
    group: options.name ?? uncapitalized(name),
    path: `${checkedPath(name, options.path ?? `/${kebab(name)}`)}/:id`,
    commands: commandsOf(aggregate, options),
    view: options.view?.of ?? (({ state }) => state),
    schemas: viewSchemas(options.view?.schema ?? aggregate.state),
    correlationHeader: checkedHeader(name, options.correlationHeader),
    retryAfter: secondsOf(name, options.retryAfter ?? "1 second"),
    maxBodySize: checkedSize(name, options.maxBodySize ?? 1_000_000)
  }
}

// --- internal ---

const commandsOf = <Name extends string, State, C extends Tagged, CI, Declared, Id extends string>(
  { commands, name, refusals: declared }: Source<Name, State, C, CI, Declared, Id>,
  { only, paths = {}, statuses: chosen = {} }: PlanOptions<State, Id>
): ReadonlyArray<PlannedCommand<C>> => {
  const members = schemasByTag(commands)
  const tags = only ?? [...members.keys()]
  const statuses = new Map(Object.entries(chosen))
  const refusals = refusalsOf(name, declared, statuses)
  const refusalTags = tags.flatMap((tag) => refusals(tag).flatMap((refusal) => refusal.tags))
  checkKeys(`only of ${name}`, tags, [...members.keys()], "command")
  checkKeys(`paths of ${name}`, Object.keys(paths), tags, "command")
  checkKeys(`statuses of ${name}`, [...statuses.keys()], refusalTags, "declared refusal")
  const planned = [...members].flatMap(([tag, schema]) => {
    if (!tags.includes(tag)) return []
    const path = checkedPath(name, paths[tag] ?? `/${kebab(tag)}`)
    return [{ tag, name: uncapitalized(tag), path, schema, refusals: refusals(tag) }]
  })
  if (planned.length === 0) throw new TypeError(`${name} has no command for an endpoint`)
  checkDistinct(name, planned)
  return planned
}

/** As `Uncapitalize` of TypeScript, by which the types name the endpoints. */
const uncapitalized = (text: string): string => text.slice(0, 1).toLowerCase() + text.slice(1)

const kebab = (text: string): string => text.replaceAll(/([a-z0-9])([A-Z])/g, "$1-$2").toLowerCase()

const refusalsOf =
  (name: string, declared: unknown, statuses: ReadonlyMap<string, number | undefined>) =>
  (tag: string): ReadonlyArray<PlannedRefusal> => {
    const listed: unknown = typeof declared === "object" && declared !== null ? Reflect.get(declared, tag) : undefined
    if (!Array.isArray(listed)) return []
    return listed.flatMap((schema: unknown) => {
      if (!Schema.isSchema(schema)) return []
      const plain: Schema.Schema<unknown, unknown> = Schema.make(schema.ast)
      const tags = tagsOf(plain)
      const chosen = tags.map((one) => statuses.get(one)).find((status) => status !== undefined)
      const status = chosen ?? HttpApiSchema.getStatus(schema.ast, 422)
      if (!(Number.isInteger(status) && status >= 400 && status <= 599)) {
        throw new TypeError(
          `the status of ${tags.join(", ")}, a refusal of ${name}.${tag}, must be one from 400 to 599, and is ${status}`
        )
      }
      return [{ schema: plain, tags, status, is: Schema.is(plain) }]
    })
  }

/** The tags of a refusal; none where its schema has no tag. */
const tagsOf = (schema: Schema.Schema<unknown, unknown>): ReadonlyArray<string> => {
  try {
    // biome-ignore lint/suspicious/noExplicitAny: a schema without tags throws
    return [...schemasByTag(schema as Schema.Schema<any, any>).keys()]
  } catch {
    return []
  }
}

const checkKeys = (option: string, given: ReadonlyArray<string>, known: ReadonlyArray<string>, what: string): void => {
  const unknown = given.filter((key) => !known.includes(key))
  if (unknown.length > 0) throw new TypeError(`${option} names what is no ${what}: ${unknown.join(", ")}`)
}

const checkedPath = (name: string, path: PathSegment): PathSegment => {
  if (!/^(?:\/[A-Za-z0-9._~:-]+)+$/.test(path) || /\/\.\.?(?:\/|$)/.test(path)) {
    throw new TypeError(
      `${name}: ${JSON.stringify(path)} is no path of an endpoint, such as /deposits: give another one`
    )
  }
  return path
}

const checkDistinct = (name: string, commands: ReadonlyArray<Pick<PlannedCommand<never>, "name" | "path">>): void => {
  for (const key of ["name", "path"] as const) {
    const values = ["get", ...commands.map((command) => command[key])]
    const twice = values.find((value, index) => values.indexOf(value) < index)
    if (twice !== undefined) throw new TypeError(`${name}: two endpoints have the ${key} ${JSON.stringify(twice)}`)
  }
}

/** `Retry-After` has whole seconds. */
const secondsOf = (name: string, duration: Duration.DurationInput): number => {
  const decoded = Duration.decodeUnknown(duration)
  const seconds = Option.isSome(decoded) ? Math.ceil(Duration.toSeconds(decoded.value)) : Number.NaN
  if (!Number.isSafeInteger(seconds)) throw new TypeError(`retryAfter of ${name} must be a finite duration`)
  return seconds
}

/** The platform has headers in lower case. */
const checkedHeader = (name: string, header: string | undefined): string | undefined => {
  if (header !== undefined && !/^[\w!#$%&'*+.^`|~-]+$/.test(header)) {
    throw new TypeError(`correlationHeader of ${name} is no name of a header: ${JSON.stringify(header)}`)
  }
  return header?.toLowerCase()
}

const checkedSize = (name: string, bytes: number): number => {
  if (!Number.isSafeInteger(bytes) || bytes < 1)
    throw new TypeError(`maxBodySize of ${name} must be a whole number above 0`)
  return bytes
}
