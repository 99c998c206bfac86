package config

import "bytes"

// HeldFiles gives what the files of a document held, as far as resources that were made of it tell: certificates, keys
// and authorities in PEM, by the names that the document has for them. Parsed again with these files, the document makes
// the same resources. A document that does not parse has none.
func HeldFiles(document []byte, made *Resources) map[string][]byte {
	names, _ := Parse(document, func(string) ([]byte, error) { return nil, ErrHeld })
	if names == nil || made == nil {
		return nil
	}
	held := heldFiles{}
	for name, c := range names.Certificates {
		held.add(c.GetChainPem(), made.Certificates[name].GetChainPem())
		held.add(c.GetKeyPem(), made.Certificates[name].GetKeyPem())
	}
	for name, route := range names.Routes {
		a, b := names.anyPool(route).GetTls(), made.anyPool(made.Routes[name]).GetTls()
		held.add(a.GetCaPem(), b.GetCaPem())
		held.add(a.GetChainPem(), b.GetChainPem())
		held.add(a.GetKeyPem(), b.GetKeyPem())
	}
	return held
}

type heldFiles map[string][]byte

// add adds some of a file's content: one file may hold a certificate and its key.
func (h heldFiles) add(name, content []byte) {
	if len(name) > 0 && len(content) > 0 && !bytes.Contains(h[string(name)], content) {
		h[string(name)] = append(h[string(name)], content...)
	}
}
