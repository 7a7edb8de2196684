/**
 * The process of the proxy of `network.ts`. It passes all bytes on after a fixed delay, in both directions.
 *
 * Timers are exact to a millisecond only. So the process asks for the time in a loop while bytes are on their way, and uses a core then.
 */
import { connect, createServer, type Socket } from "node:net"

/** What the parent process sends: the server, and the delay of one direction. */
export interface Order {
  readonly host: string
  readonly port: number
  readonly millis: number
}

/** What the parent process gets when the proxy listens. */
export interface Ready {
  readonly port: number
}

process.once("message", (message) => {
  const { host, millis, port } = message as Order
  /** In the order of their due times, because all have the same delay. */
  const underWay: Array<readonly [due: number, arrive: () => void]> = []
  let next = 0
  const later = (arrive: () => void): void => {
    underWay.push([performance.now() + millis, arrive])
    if (underWay.length === 1) setImmediate(look)
  }
  const look = (): void => {
    for (const now = performance.now(); ; next++) {
      const first = underWay[next]
      if (first === undefined || first[0] > now) break
      first[1]()
    }
    if (next < underWay.length) setImmediate(look)
    else {
      underWay.length = 0
      next = 0
    }
  }
  const pass = (from: Socket, to: Socket): void => {
    from.on("data", (bytes) => later(() => to.write(bytes)))
    from.on("end", () => later(() => to.end()))
    from.on("error", () => to.destroy())
  }
  const server = createServer({ noDelay: true, allowHalfOpen: true }, (client) => {
    const upstream = connect({ port, host, noDelay: true, allowHalfOpen: true })
    pass(client, upstream)
    pass(upstream, client)
  })
  server.listen(0, "127.0.0.1", () => {
    const address = server.address()
    if (address !== null && typeof address !== "string") process.send?.({ port: address.port } satisfies Ready)
  })
})

process.once("disconnect", () => process.exit())
