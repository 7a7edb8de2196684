/** The protocol between clients and a Postgres server: messages, and how to log in. For tests that stand between the two. */
import { createHash, createHmac, pbkdf2Sync, randomBytes } from "node:crypto"
import { connect, type Socket } from "node:net"

/** A message: its type, and what follows the length. */
export interface Frame {
  readonly type: string
  readonly body: Buffer
}

export const message = (type: string, body: string | Buffer): Buffer => {
  const bytes = typeof body === "string" ? Buffer.from(body) : body
  return Buffer.concat([Buffer.from(type), int32(bytes.length + 4), bytes])
}

/** Calls back for each complete message of a stream of bytes. */
export const splitter = (seen: (frame: Frame) => void): ((chunk: Buffer) => void) => {
  let rest: Buffer = Buffer.alloc(0)
  return (chunk) => {
    rest = rest.length === 0 ? chunk : Buffer.concat([rest, chunk])
    while (rest.length >= 5 && rest.length > rest.readInt32BE(1)) {
      const end = rest.readInt32BE(1) + 1
      const frame = { type: String.fromCharCode(rest[0] ?? 0), body: rest.subarray(5, end) }
      rest = rest.subarray(end)
      seen(frame)
    }
  }
}

export const int32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4)
  bytes.writeInt32BE(value)
  return bytes
}

/** The text that begins at an offset and ends before a zero. */
export const textAt = (bytes: Buffer, at: number): string => bytes.toString("utf8", at, bytes.indexOf(0, at))

/** The names and values of a startup message. */
export const textsIn = (bytes: Buffer): ReadonlyMap<string, string> => {
  const texts = new Map<string, string>()
  const parts = bytes.toString().split("\0")
  for (let at = 0; at + 1 < parts.length && parts[at] !== ""; at += 2) texts.set(parts[at] ?? "", parts[at + 1] ?? "")
  return texts
}

/** A connection to a server that is ready for statements. */
export interface Session {
  readonly socket: Socket
  /** The process id and the secret of a cancel request. */
  readonly key: Buffer
  /** The parameters that the server has reported. */
  readonly parameters: ReadonlyMap<string, string>
  /** Gets the messages of the server. */
  onFrame: (frame: Frame) => void
}

/** Opens a connection to the server of a URL and logs in, by a password or by SCRAM. */
export const login = (target: URL): Promise<Session> =>
  new Promise((resolve, reject) => {
    const { hostname, port } = target
    const [user, password, database] = [target.username, target.password, target.pathname.slice(1)].map(
      decodeURIComponent
    )
    const socket = connect({ port: Number(port), host: hostname, noDelay: true })
    socket.on("error", reject)
    socket.on("close", () => reject(new Error("the connection was closed")))
    const start = Buffer.from(["user", user, "database", database, "client_encoding", "UTF8", "", ""].join("\0"))
    socket.write(Buffer.concat([int32(start.length + 8), int32(version), start]))
    const parameters = new Map<string, string>()
    const scram = makeScram(password ?? "")
    let key: Buffer = Buffer.alloc(0)
    let session: Session | undefined
    socket.on(
      "data",
      splitter((frame) => {
        if (session !== undefined) return session.onFrame(frame)
        const { body, type } = frame
        if (type === "E") reject(new Error(body.toString()))
        else if (type === "K") key = Buffer.from(body)
        else if (type === "S") {
          const name = textAt(body, 0)
          parameters.set(name, textAt(body, Buffer.byteLength(name) + 1))
        } else if (type === "Z") {
          session = { socket, key, parameters, onFrame: () => {} }
          resolve(session)
        } else if (type === "R") {
          const [method, data] = [body.readInt32BE(0), body.subarray(4).toString()]
          if (method === 3) socket.write(message("p", `${password}\0`))
          else if (method === 10) {
            const first = Buffer.from(scram.first)
            socket.write(message("p", Buffer.concat([Buffer.from("SCRAM-SHA-256\0"), int32(first.length), first])))
          } else if (method === 11) socket.write(message("p", scram.final(data)))
          else if (method !== 0 && method !== 12) reject(new Error(`no login by method ${method}`))
        }
      })
    )
  })

// --- internal ---

/** 3.0, as two numbers of 16 bits. */
const version = 3 << 16

/** The client's messages of SCRAM-SHA-256 (RFC 5802), without channel binding. */
const makeScram = (password: string) => {
  const bare = `n=,r=${randomBytes(18).toString("base64")}`
  const hmac = (key: Buffer, data: string) => createHmac("sha256", key).update(data).digest()
  return {
    first: `n,,${bare}`,
    final: (challenge: string): string => {
      const [nonce = "", salt = "", iterations = ""] = challenge.split(",").map((part) => part.slice(2))
      const salted = pbkdf2Sync(password, Buffer.from(salt, "base64"), Number(iterations), 32, "sha256")
      const clientKey = hmac(salted, "Client Key")
      const final = `c=biws,r=${nonce}`
      const signature = hmac(createHash("sha256").update(clientKey).digest(), `${bare},${challenge},${final}`)
      return `${final},p=${Buffer.from(clientKey.map((byte, index) => byte ^ (signature[index] ?? 0))).toString("base64")}`
    }
  }
}
