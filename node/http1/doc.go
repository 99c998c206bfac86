// Package http1 owns the HTTP/1.1 wire of the data plane: heads of requests and responses are parsed in place, bodies are
// taken out of their framing in place, and heads and chunks are appended to a buffer. It is as strict as RFC 9112 and RFC 9110
// allow, and in a few places stricter: what two parsers could read differently is refused, since a proxy that guesses lets
// one request be two for the server behind it. DESIGN.md names each decision.
//
// It does not own sockets, buffers, goroutines, clocks or policy: what is read, when to give up waiting, which fields to
// add or drop, and what to answer belong to its callers. It does not know HTTP/2, but says when a client begins to speak it,
// and refuses to write what came over HTTP/2 and would be two lines here.
//
// Order of calls, for each message:
//
//  1. [Request.Reset] or [Response.Reset], then Parse with all bytes from the start of the message on, again after every
//     read until it returns their number: 0 means that more are needed. What was looked at is not looked at again, whatever
//     the size of the reads. The caller may move the bytes between calls; from the last one on the head points into them.
//  2. The facts ([Head], [Request], [Response]) and the fields ([Fields]) until those bytes are overwritten. A proxy's copying
//     loop is one pass over [Fields.List] with a switch on [Field.ID]; [Field.Hop] says what must stay behind, and
//     [Fields.AppendLine] copies what goes on.
//  3. [Body.Reset] with the head while it is still there, then [Body.Next] or [Body.NextRaw] with the bytes after it, until
//     [Body.Done]. Bytes behind the end of the body are never touched: they are the next message.
//  4. [Body.EOF] when the connection ends before that.
//
// Writing: [AppendRequestLine] or [AppendStatusLine], then [AppendField] and [Fields.AppendLine], then [AppendHeadEnd]; for
// chunks [PutChunkHeader] or [AppendChunkHeader], [AppendChunkEnd], and [AppendLastChunk], trailer fields, [AppendHeadEnd].
//
// All errors of parsing are a [Reason], a small number with a fixed text for metrics and the status to answer with.
// Nothing here allocates once the structs are warm. No type may be used by two goroutines at a time; the functions are pure.
package http1
