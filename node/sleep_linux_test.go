package node

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"github.com/pyserve/pyserve/node/nodetest"
)

// goroutineStacks is what every goroutine does at the moment.
func goroutineStacks() string {
	var text strings.Builder
	pprof.Lookup("goroutine").WriteTo(&text, 1)
	return text.String()
}

func TestAnIdleConnectionHasNoGoroutine(t *testing.T) {
	n := newNode(t, Options{})
	apply(t, n, 1, nodetest.NewBuild().Route("/", saying(t, "x")))
	c, err := net.Dial("tcp", n.ListenAddress())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	in := bufio.NewReader(c)
	for range 2 {
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(res.Body); string(body) != "x /" || err != nil {
			t.Fatalf("%q %v", body, err)
		}
		nodetest.Eventually(t, "it sleeps", func() bool { return !strings.Contains(goroutineStacks(), "forward.(*conn)") })
	}
	if err := stop(n, time.Minute); err != nil {
		t.Error(err)
	}
	if n, err := in.Read(make([]byte, 1)); n > 0 || err != io.EOF {
		t.Errorf("the drain has left it: %d, %v", n, err)
	}
}
