/** A proxy in front of Postgres that counts round trips: the `ReadyForQuery` messages of the server. */
import { connect, createServer, type Socket } from "node:net"

export interface CountingProxy {
  /** The given URL with the address of the proxy. */
  readonly url: string
  /** The number of round trips until now. */
  readonly count: () => number
  readonly close: () => Promise<void>
}

export const openCountingProxy = async (target: string): Promise<CountingProxy> => {
  const { hostname, port } = new URL(target)
  const sockets = new Set<Socket>()
  let trips = 0
  const server = createServer((client) => {
    const upstream = connect(Number(port), hostname)
    const inspect = watchFrames((type) => {
      if (type === readyForQuery) trips++
    })
    for (const [socket, other] of [
      [client, upstream],
      [upstream, client]
    ] as const) {
      sockets.add(socket)
      socket.setNoDelay(true)
      socket.on("error", () => other.destroy())
      socket.on("close", () => {
        sockets.delete(socket)
        other.destroy()
      })
    }
    upstream.on("data", inspect)
    upstream.pipe(client)
    client.pipe(upstream)
  })
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  const address = server.address()
  if (address === null || typeof address === "string") throw new Error("the proxy has no port")
  const url = new URL(target)
  url.port = String(address.port)
  return {
    url: url.href,
    count: () => trips,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve())
        for (const socket of sockets) socket.destroy()
      })
  }
}

// --- internal ---

const readyForQuery = "Z".charCodeAt(0)

/** Reports the type of each message: a byte, followed by four bytes with the length, which includes these four. */
const watchFrames = (seen: (type: number) => void): ((chunk: Buffer) => void) => {
  let header: Buffer = Buffer.alloc(0)
  let toSkip = 0
  return (chunk) => {
    let at = 0
    while (at < chunk.length) {
      if (toSkip > 0) {
        const skipped = Math.min(toSkip, chunk.length - at)
        toSkip -= skipped
        at += skipped
        continue
      }
      const missing = Math.min(5 - header.length, chunk.length - at)
      header = Buffer.concat([header, chunk.subarray(at, at + missing)])
      at += missing
      if (header.length === 5) {
        seen(header.readUInt8(0))
        toSkip = header.readUInt32BE(1) - 4
        header = Buffer.alloc(0)
      }
    }
  }
}
