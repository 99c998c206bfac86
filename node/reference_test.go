package node

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/pyserve/pyserve/config"
	"github.com/pyserve/pyserve/config/bundle"
	"github.com/pyserve/pyserve/node/certtest"
)

// Every example of the reference is served: one after another by one node, as if each were applied over the one before.
func TestExamplesOfTheReferenceAreServed(t *testing.T) {
	data, err := os.ReadFile("../docs/config.md")
	if err != nil {
		t.Fatal(err)
	}
	authority := certtest.New(t)
	pair := authority.Issue(t, "localhost")
	files := map[string][]byte{
		"./ssl/cert.pem": pair.ChainPEM, "./ssl/key.pem": pair.KeyPEM,
		"./client.pem": pair.ChainPEM, "./client-key.pem": pair.KeyPEM, "./ca.pem": authority.PEM,
	}
	n := newNode(t, Options{Listen: "127.0.0.1:0"})
	examples := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(data), -1)
	if len(examples) == 0 {
		t.Fatal("no examples")
	}
	for i, example := range examples {
		resources, problems := config.Parse([]byte(example[1]), func(name string) ([]byte, error) {
			if data, ok := files[name]; ok {
				return data, nil
			}
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		})
		if resources == nil {
			t.Errorf("%v\n%s", problems, example[1])
			continue
		}
		toLoopback(resources)
		made, err := bundle.Encode(resources)
		if err != nil {
			t.Fatal(err)
		}
		generation, err := n.Prepare(release(uint64(i+1)), made)
		if err != nil {
			t.Errorf("%v\n%s", err, example[1])
			continue
		}
		n.Apply(generation)
		for name := range resources.Routes {
			if generation.route(name) == nil {
				t.Errorf("the route %s is not served:\n%s", name, example[1])
			}
		}
	}
}

// toLoopback gives each backend an address of its own at which nobody is asked for anything: probes begin at once, and names
// would be looked up.
func toLoopback(r *config.Resources) {
	n := 0
	for _, name := range slices.Sorted(maps.Keys(r.Pools)) {
		for _, b := range r.Pools[name].GetBackends() {
			n++
			b.Host = fmt.Sprintf("127.1.%d.%d", n/250, n%250+1)
		}
	}
}
