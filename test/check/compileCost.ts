/**
 * Checks what aggregates cost the compiler: how many types a program with 10 aggregates makes, beside the same schemas
 * without them. The number is the same on every machine, and the time to check a program follows it.
 */
import * as path from "node:path"
import { fileURLToPath } from "node:url"
import ts from "typescript"

const root = fileURLToPath(new URL("../..", import.meta.url))
const count = 10

/** With aggregates a program may make so many times the types. */
const limit = 1.5

const schemas = (index: number): string => `
class Opened${index} extends Schema.TaggedClass<Opened${index}>()("Opened", { owner: Schema.String, limit: Schema.Int }) {}
class Deposited${index} extends Schema.TaggedClass<Deposited${index}>()("Deposited", { amount: Schema.Number }) {}
class Withdrawn${index} extends Schema.TaggedClass<Withdrawn${index}>()("Withdrawn", {
  amount: Schema.Number, reason: Schema.optional(Schema.String)
}) {}
class Closed${index} extends Schema.TaggedClass<Closed${index}>()("Closed", {}) {}
class Open${index} extends Schema.TaggedClass<Open${index}>()("Open", { owner: Schema.String, limit: Schema.Int }) {}
class Deposit${index} extends Schema.TaggedClass<Deposit${index}>()("Deposit", { amount: Schema.Number }) {}
class Withdraw${index} extends Schema.TaggedClass<Withdraw${index}>()("Withdraw", {
  amount: Schema.Number, reason: Schema.optional(Schema.String)
}) {}
class Close${index} extends Schema.TaggedClass<Close${index}>()("Close", {}) {}
class NotOpen${index} extends Schema.TaggedError<NotOpen${index}>()("NotOpen", {}) {}
class Overdrawn${index} extends Schema.TaggedError<Overdrawn${index}>()("Overdrawn", { balance: Schema.Number }) {}
export const events${index} = Schema.Union(Opened${index}, Deposited${index}, Withdrawn${index}, Closed${index})
export const commands${index} = Schema.Union(Open${index}, Deposit${index}, Withdraw${index}, Close${index})
export const state${index} = Schema.Struct({
  status: Schema.Literal("new", "open", "closed"), owner: Schema.String, balance: Schema.Number, limit: Schema.Int
})
export const initialState${index}: typeof state${index}.Type = { status: "new", owner: "", balance: 0, limit: 0 }
export const refusals${index} = [NotOpen${index}, Overdrawn${index}]
`

const aggregate = (index: number): string => `
export const Account${index} = Aggregate.make("Account${index}", {
  state: state${index},
  initialState: initialState${index},
  events: events${index},
  commands: commands${index},
  decide: {
    Open: ({ limit, owner }) => Effect.succeed([new Opened${index}({ owner, limit })]),
    Deposit: ({ amount }, { state }) =>
      state.status === "open" ? Effect.succeed([new Deposited${index}({ amount })]) : new NotOpen${index}(),
    Withdraw: ({ amount }, { state }) => {
      if (state.status !== "open") return new NotOpen${index}()
      return state.balance + state.limit < amount
        ? new Overdrawn${index}({ balance: state.balance })
        : Effect.succeed([new Withdrawn${index}({ amount })])
    },
    Close: (_, { state }) =>
      state.status === "open" ? Effect.succeed([new Closed${index}()]) : new NotOpen${index}()
  },
  evolve: {
    Opened: (state, { limit, owner }) => ({ ...state, status: "open", owner, limit }),
    Deposited: (state, { amount }) => ({ ...state, balance: state.balance + amount }),
    Withdrawn: (state, { amount }) => ({ ...state, balance: state.balance - amount }),
    Closed: (state) => ({ ...state, status: "closed" })
  }
})
export const deposit${index} = Account${index}.evaluate("a", new Deposit${index}({ amount: 1 }))
`

/** Both programs load the library, so that only the aggregates are compared. */
const head = `import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Aggregate } from "effect-maestro"
export const used = [Effect.void, Aggregate.make] as const
`

const parsed = ts.getParsedCommandLineOfConfigFile(
  path.join(root, "tsconfig.json"),
  {},
  {
    ...ts.sys,
    onUnRecoverableConfigFileDiagnostic: ({ messageText }) => {
      throw new Error(ts.flattenDiagnosticMessageText(messageText, "\n"))
    }
  }
)
if (parsed === undefined) throw new Error("cannot read tsconfig.json")
const options: ts.CompilerOptions = { ...parsed.options, noEmit: true, incremental: false, plugins: [] }
const host = ts.createCompilerHost(options)

/** Type-checks a program that stands beside this file, and returns how many types that made. */
const typesOf = (body: (index: number) => string): number => {
  const texts = new Map(
    Array.from({ length: count }, (_, index) => [path.join(root, `test/check/cost${index}.ts`), head + body(index)])
  )
  const program = ts.createProgram([...texts.keys()], options, {
    ...host,
    fileExists: (file) => texts.has(file) || host.fileExists(file),
    readFile: (file) => texts.get(file) ?? host.readFile(file),
    getSourceFile: (file, version) => {
      const text = texts.get(file)
      return text === undefined ? host.getSourceFile(file, version) : ts.createSourceFile(file, text, version)
    }
  })
  for (const file of texts.keys()) {
    const [error] = program.getSemanticDiagnostics(program.getSourceFile(file))
    if (error !== undefined) throw new Error(ts.flattenDiagnosticMessageText(error.messageText, "\n"))
  }
  return program.getTypeCount()
}

const [without, withThem] = [typesOf(schemas), typesOf((index) => schemas(index) + aggregate(index))]
const ratio = withThem / without
console.log(`${count} aggregates: ${withThem} types, ${without} without them, ${ratio.toFixed(2)} times as many`)
process.exitCode = ratio <= limit ? 0 : 1
