// Package accesslog owns the access log: a line for every request, written by a goroutine of its own. Logging an entry
// copies it into a queue and neither waits nor allocates; where the queue is full, or writing fails, the entry is dropped
// and counted. A disk that is slow or full costs lines of the log, never a request.
//
// It does not decide what is logged, and owns no metrics: Dropped and Written are there to be exported. It does not
// compress, rotate or sync files: lines that the kernel has taken are gone with the machine, not with the process.
//
// Order of calls: OpenFile, or any other io.Writer, then New; Log; Close, and only then the writer's own Close.
//
// # One entry, one line
//
// Most values come from clients. Whatever bytes are in them, an entry is one line, and no value reaches a terminal as a
// control character. A value longer than Options.MaxValue is cut there, and ends in "…" for a mark.
//
// Text is the combined log format, and after it more of the request as key=value, always all of them and in this order:
//
//	192.0.2.7 - - [23/Nov/2026:19:01:43 +0000] "GET /a?b=1 HTTP/1.1" 200 512 "https://example.com/" "curl/8.9"
//	    host="example.com" route="/a" backend="10.0.0.1:3000" request_id="0f1e2d3c" class="-" took=0.001234
//	    upstream_took=0.001100 received=0 retries=0 part=0
//
// (in one line). Times are in UTC, took and upstream_took in seconds, received and sent (the number after the status) in
// bytes of bodies. An empty value is "-"; a status of 0, for a request that was cut without an answer, is 000. A quote, a
// backslash and every byte that is not printable ASCII are written as \xNN, in the request line a space too, so that it
// always is three words. The mark is the one thing that is not ASCII.
//
// JSON is an object per line, always with all keys and in this order:
//
//	{"time":"2026-11-23T19:01:43.123456Z","client":"192.0.2.7","method":"GET","host":"example.com","target":"/a?b=1",
//	    "proto":"HTTP/1.1","status":200,"received":0,"sent":512,"took":0.001234,"upstream_took":0.001100,"route":"/a",
//	    "backend":"10.0.0.1:3000","request_id":"0f1e2d3c","user_agent":"curl/8.9","referer":"https://example.com/","class":"",
//	    "retries":0,"part":0}
//
// Characters that are not printable are written as \uNNNN, line separators and those that change the direction of text among
// them. Bytes that are not UTF-8, which JSON cannot hold, become \ufffd each: only Text tells them apart.
//
// # Rotation
//
// A File is opened again when there is another file at its path, or none, which is looked for about once per second:
// logrotate needs no postrotate. Until then lines go to the file that was moved away, so it wants delaycompress. Everything
// is appended, so that copytruncate works as well.
package accesslog
