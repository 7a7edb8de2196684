/**
 * Reads the public surface of the package from the declarations that TypeScript makes of `src`: the exports of each
 * public module, and the types that they refer to. `api.ts` and `llms.ts` write it.
 */
import * as fs from "node:fs"
import * as path from "node:path"
import ts from "typescript"
import { root } from "./markdown.js"

/** The declarations of one name, in the file that has them. */
export interface Declared {
  readonly name: string
  readonly nodes: ReadonlyArray<ts.Statement>
}

/** An export of a public module. */
export interface Exported {
  /** The name by which users import it. */
  readonly name: string
  readonly declared: Declared
  /** The node that has the doc comment: the declaration, or the name in a re-export. */
  readonly documented: ts.Node
}

export interface PublicModule {
  readonly name: string
  /** The first paragraph of its file. */
  readonly summary: string
  readonly exports: ReadonlyArray<Exported>
}

export interface Surface {
  /** The modules that `effect-maestro` itself exports, each under its name. */
  readonly index: ReadonlyArray<string>
  readonly modules: ReadonlyArray<PublicModule>
  /** What the exports refer to and no public module exports. */
  readonly referred: ReadonlyArray<Declared>
}

/** The declarations of all modules of a folder, by their path without extension. The files of `dist` play no part. */
const emitDeclarations = (sourceFolder: string, given: ts.CompilerOptions): ReadonlyMap<string, ts.SourceFile> => {
  const configFile = path.join(root, "tsconfig.json")
  const { config } = ts.readConfigFile(configFile, ts.sys.readFile)
  const { options } = ts.parseJsonConfigFileContent(config, ts.sys, root)
  const files = fs
    .readdirSync(sourceFolder, { recursive: true, encoding: "utf8" })
    .filter((file) => file.endsWith(".ts"))
    .sort()
  const program = ts.createProgram(
    files.map((file) => path.join(sourceFolder, file)),
    // `npm run check:types` finds the errors.
    {
      ...options,
      ...given,
      noEmit: false,
      declaration: true,
      emitDeclarationOnly: true,
      noCheck: true,
      rootDir: sourceFolder,
      outDir: "/"
    }
  )
  const emitted = new Map<string, ts.SourceFile>()
  program.emit(
    undefined,
    (file, text) => {
      const module = file
        .replaceAll("\\", "/")
        .replace(/^\//, "")
        .replace(/\.d\.ts$/, "")
      emitted.set(module, ts.createSourceFile(file, text, ts.ScriptTarget.Latest, true))
    },
    undefined,
    true
  )
  return emitted
}

/** The module that `specifier` names in `from`, or `undefined` if it is a package. */
const resolved = (from: string, specifier: string): string | undefined =>
  specifier.startsWith(".") ? path.posix.join(path.posix.dirname(from), specifier).replace(/\.js$/, "") : undefined

/** What a name of a module stands for: declarations of its own, a name of another module, or a whole module. */
type Meaning =
  | { readonly kind: "declared"; readonly nodes: Array<ts.Statement> }
  | { readonly kind: "alias"; readonly module: string; readonly name: string }
  | { readonly kind: "namespace"; readonly module: string }

interface Names {
  /** All names that the text of the module may use. */
  readonly local: ReadonlyMap<string, Meaning>
  /** The exported names, each with the node that documents it, in the order of the file. */
  readonly exported: ReadonlyMap<string, { readonly meaning: Meaning; readonly node: ts.Node }>
}

const textOf = (node: ts.Expression): string => (ts.isStringLiteral(node) ? node.text : "")

const isExported = (statement: ts.Statement): boolean =>
  ts.canHaveModifiers(statement) &&
  ts.getModifiers(statement)?.some(({ kind }) => kind === ts.SyntaxKind.ExportKeyword) === true

const namesDeclaredBy = (statement: ts.Statement): ReadonlyArray<string> => {
  if (ts.isVariableStatement(statement)) return statement.declarationList.declarations.map(({ name }) => name.getText())
  const isNamed =
    ts.isInterfaceDeclaration(statement) ||
    ts.isTypeAliasDeclaration(statement) ||
    ts.isClassDeclaration(statement) ||
    ts.isFunctionDeclaration(statement) ||
    ts.isEnumDeclaration(statement) ||
    ts.isModuleDeclaration(statement)
  return isNamed && statement.name !== undefined ? [statement.name.text] : []
}

const importsOf = (module: string, statement: ts.ImportDeclaration): ReadonlyArray<readonly [string, Meaning]> => {
  const target = resolved(module, textOf(statement.moduleSpecifier))
  const bindings = statement.importClause?.namedBindings
  if (target === undefined || bindings === undefined) return []
  if (ts.isNamespaceImport(bindings)) return [[bindings.name.text, { kind: "namespace", module: target }]]
  return bindings.elements.map(({ name, propertyName }) => [
    name.text,
    { kind: "alias", module: target, name: (propertyName ?? name).text }
  ])
}

const namesOf = (module: string, file: ts.SourceFile): Names => {
  const local = new Map<string, Meaning>()
  const exported = new Map<string, { readonly meaning: Meaning; readonly node: ts.Node }>()
  for (const statement of file.statements) {
    if (ts.isImportDeclaration(statement)) {
      for (const [name, meaning] of importsOf(module, statement)) local.set(name, meaning)
    }
    for (const name of namesDeclaredBy(statement)) {
      const before = local.get(name)
      const meaning: Meaning = before?.kind === "declared" ? before : { kind: "declared", nodes: [] }
      if (meaning.kind === "declared") meaning.nodes.push(statement)
      local.set(name, meaning)
      if (isExported(statement) && !exported.has(name)) exported.set(name, { meaning, node: statement })
    }
  }
  for (const statement of file.statements) {
    if (!ts.isExportDeclaration(statement) || statement.exportClause === undefined) continue
    const target = statement.moduleSpecifier && resolved(module, textOf(statement.moduleSpecifier))
    if (!ts.isNamedExports(statement.exportClause)) {
      if (target === undefined) continue
      const name = statement.exportClause.name.text
      exported.set(name, { meaning: { kind: "namespace", module: target }, node: statement })
      continue
    }
    for (const element of statement.exportClause.elements) {
      const name = (element.propertyName ?? element.name).text
      const meaning: Meaning | undefined =
        target === undefined ? local.get(name) : { kind: "alias", module: target, name }
      if (meaning !== undefined) exported.set(element.name.text, { meaning, node: element })
    }
  }
  return { local, exported }
}

/** The text of the doc comment of a node, without its tags. */
export const commentOf = (node: ts.Node): string =>
  ts
    .getJSDocCommentsAndTags(node)
    .flatMap((doc) => (ts.isJSDoc(doc) ? [ts.getTextOfJSDocComment(doc.comment) ?? ""] : []))
    .join("\n\n")

/** The first paragraph of a source file. Declarations may lack it, where it stands above an import that they leave out. */
const summaryOf = (file: string): string => {
  const source = fs.readFileSync(file, "utf8")
  const [first] = ts.getLeadingCommentRanges(source, 0) ?? []
  if (first === undefined) return ""
  const text = source.slice(first.pos, first.end).replaceAll(/^\s*\/?\*+\/? ?/gm, "")
  return (text.trim().split(/\n\s*\n/)[0] ?? "").replaceAll(/\s+/g, " ")
}

/** Whether an identifier may refer to a declaration, and is not the name of a member or of a parameter. */
const isReference = (node: ts.Identifier): boolean => {
  const { parent } = node
  if (ts.isQualifiedName(parent)) return parent.left === node
  if (ts.isPropertyAccessExpression(parent)) return parent.expression === node
  if (ts.isImportTypeNode(parent)) return false
  return !("name" in parent && parent.name === node)
}

const referencesOf = (node: ts.Node): ReadonlyArray<ts.Identifier | ts.ImportTypeNode> => {
  const found: Array<ts.Identifier | ts.ImportTypeNode> = []
  const visit = (child: ts.Node): void => {
    if (ts.isImportTypeNode(child)) found.push(child)
    if (ts.isIdentifier(child) && isReference(child)) found.push(child)
    ts.forEachChild(child, visit)
  }
  visit(node)
  return found
}

/** The first name after `module.` in `module.Name` or in `import("module").Name`. */
const memberOf = (node: ts.Node): string | undefined => {
  const { parent } = node
  if (ts.isQualifiedName(parent)) return parent.right.text
  return ts.isPropertyAccessExpression(parent) ? parent.name.text : undefined
}

const firstName = (name: ts.EntityName): string => (ts.isIdentifier(name) ? name.text : firstName(name.left))

const moduleOf = (node: ts.Node): string =>
  node
    .getSourceFile()
    .fileName.replaceAll("\\", "/")
    .replace(/^\//, "")
    .replace(/\.d\.ts$/, "")

/** Follows names through imports and re-exports. */
const makeResolver = (names: ReadonlyMap<string, Names>) => {
  const declarationsOf = (meaning: Meaning | undefined): ReadonlyArray<ts.Statement> => {
    if (meaning === undefined || meaning.kind === "namespace") return []
    if (meaning.kind === "declared") return meaning.nodes
    const there = names.get(meaning.module)?.exported.get(meaning.name)
    if (there === undefined) throw new Error(`${meaning.module} does not export ${meaning.name}`)
    return declarationsOf(there.meaning)
  }

  const meaningOf = (node: ts.Identifier | ts.ImportTypeNode): Meaning | undefined => {
    const module = moduleOf(node)
    if (ts.isImportTypeNode(node)) {
      const { argument, qualifier } = node
      const target = ts.isLiteralTypeNode(argument) && ts.isStringLiteral(argument.literal) ? argument.literal.text : ""
      const file = resolved(module, target)
      return file === undefined || qualifier === undefined
        ? undefined
        : { kind: "alias", module: file, name: firstName(qualifier) }
    }
    const meaning = names.get(module)?.local.get(node.text)
    if (meaning?.kind !== "namespace") return meaning
    const member = memberOf(node)
    return member === undefined ? undefined : { kind: "alias", module: meaning.module, name: member }
  }

  return { declarationsOf, meaningOf }
}

type Resolver = ReturnType<typeof makeResolver>

/** What the statements refer to, directly or by other declarations, and is not among them. */
const referredBy = (
  statements: ReadonlyArray<ts.Statement>,
  { declarationsOf, meaningOf }: Resolver
): ReadonlyArray<Declared> => {
  const seen = new Set(statements)
  const referred: Array<Declared> = []
  const waiting = [...statements]
  for (let statement = waiting.shift(); statement !== undefined; statement = waiting.shift()) {
    for (const reference of referencesOf(statement)) {
      const nodes = declarationsOf(meaningOf(reference)).filter((node) => !seen.has(node))
      const [name] = nodes.flatMap(namesDeclaredBy)
      if (name === undefined) continue
      for (const node of nodes) seen.add(node)
      waiting.push(...nodes)
      referred.push({ name, nodes })
    }
  }
  const key = ({ name, nodes }: Declared): string => `${name} ${nodes.map(printed).join()}`
  return referred.sort((a, b) => (key(a) < key(b) ? -1 : 1))
}

/** Reads the surface of a folder of sources. `src` takes a few seconds, because TypeScript has to infer types. */
export const readSurface = (sourceFolder = path.join(root, "src"), options: ts.CompilerOptions = {}): Surface => {
  const files = emitDeclarations(sourceFolder, options)
  const names = new Map([...files].map(([module, file]) => [module, namesOf(module, file)]))
  const resolver = makeResolver(names)
  const modules = [...files]
    .filter(([module]) => !module.includes("/") && module !== "index")
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(
      ([name]): PublicModule => ({
        name,
        summary: summaryOf(path.join(sourceFolder, `${name}.ts`)),
        exports: [...(names.get(name)?.exported ?? [])].map(([exportedAs, { meaning, node }]) => {
          const nodes = resolver.declarationsOf(meaning)
          const [own = exportedAs] = nodes.flatMap(namesDeclaredBy)
          return { name: exportedAs, declared: { name: own, nodes }, documented: node }
        })
      })
    )
  const statements = new Set(modules.flatMap(({ exports }) => exports.flatMap(({ declared }) => declared.nodes)))
  return {
    index: [...(names.get("index")?.exported.keys() ?? [])].sort(),
    modules,
    referred: referredBy([...statements], resolver)
  }
}

const printer = ts.createPrinter({ removeComments: true })

/** Members of a union in the order of their text, because the order of the compiler follows unrelated code. */
const sortUnions: ts.TransformerFactory<ts.Node> = (context) => {
  const visit = (node: ts.Node): ts.Node => {
    const inner = ts.visitEachChild(node, visit, context)
    if (!ts.isUnionTypeNode(inner)) return inner
    const file = node.getSourceFile()
    const text = (member: ts.TypeNode): string => printer.printNode(ts.EmitHint.Unspecified, member, file)
    const members = [...inner.types].sort((a, b) => (text(a) < text(b) ? -1 : 1))
    return ts.factory.updateUnionTypeNode(inner, ts.factory.createNodeArray(members))
  }
  return visit
}

/** The text of a declaration, without comments and without `export declare`. */
export const printed = (statement: ts.Statement): string => {
  const { transformed } = ts.transform<ts.Node>(statement, [sortUnions])
  const [node = statement] = transformed
  return printer
    .printNode(ts.EmitHint.Unspecified, node, statement.getSourceFile())
    .replace(/^(export )?(declare )?/, "")
    .replaceAll("    ", "  ")
}
