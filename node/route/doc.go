// Package route decides which route a request takes. It is pure: a table is compiled from rules once and then only read,
// and the same request always gets the same answer.
//
// It does not parse request lines, know pools or forward anything; what a rule leads to is the caller's, carried as Value.
//
// Order of calls: Compile once for each generation. For each request NormalizePath on the path of the request-target and
// CanonicalHost on its host, then Lookup with the two and, for what rules ask beyond them, the request. What is matched is
// what must be forwarded, so the normalised path, not the raw one, goes to the backend.
//
// Host and path are bytes in the caller's buffers, so that a request costs no allocation. What NormalizePath and
// CanonicalHost return is part of one of their two arguments: it holds as long as that is not overwritten, and must not be
// appended to, which could overwrite what follows it there.
package route
