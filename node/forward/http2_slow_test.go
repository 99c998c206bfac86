package forward

import (
	"bytes"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// connectPiped speaks HTTP/2 with prior knowledge to a front of a bubble.
func connectPiped(t *testing.T, f *Front, settings ...http2.Setting) *framed {
	t.Helper()
	ours, theirs := net.Pipe()
	ours.SetDeadline(time.Now().Add(time.Hour)) // of the bubble
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f.Serve(theirs, nil, netip.Addr{}, nil)
	}()
	t.Cleanup(func() {
		ours.Close()
		<-ended
	})
	return newFramed(t, ours, settings...)
}

// closedWindow is what a client announces that wants no data unless it says so.
var closedWindow = http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}

func idleFor(d time.Duration) *resourcev1.Timeouts { return &resourcev1.Timeouts{Idle: seconds(d)} }

// resets reads until so many streams are reset, and says meanwhile that it is there.
func (c *framed) resets(n int) {
	c.t.Helper()
	for n > 0 {
		f, err := c.ReadFrame()
		if err != nil {
			c.t.Fatalf("%d streams are not reset: %v", n, err)
		}
		switch f := f.(type) {
		case *http2.PingFrame:
			c.sent(c.WritePing(true, f.Data))
		case *http2.RSTStreamFrame:
			n--
		}
	}
}

// The end of an answer was waited for without a limit by a goroutine each.
func TestHTTP2AClientThatOpensNoWindowIsResetInTheEnd(t *testing.T) {
	const idle = time.Minute
	for name, c := range map[string]struct {
		path       string
		idle, want time.Duration
	}{
		"an answer of ours":                       {"/../", idle, writeTimeout},
		"an answer of the backend":                {"/", idle, idle},
		"one of a route that lets it stand still": {"/", 0, stallTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := connectPiped(t, newPipedFront(t, serve(sized("short")), idleFor(c.idle)), closedWindow)
				begun := time.Now()
				for i := range uint32(maxStreams) {
					client.open(2*i+1, true, ordinary("GET", c.path)...)
					client.next(http2.FrameHeaders, 2*i+1)
				}
				client.resets(maxStreams)
				if took := time.Since(begun); took < c.want || took > 2*c.want {
					t.Errorf("reset after %v, want %v", took, c.want)
				}
				// No more than maxStreams are served at a time, so the goroutines of those have ended where this one is.
				client.open(2*maxStreams+1, true, ordinary("HEAD", "/../")...)
				if o := client.await(2*maxStreams + 1); o.status != "400" || !o.ended {
					t.Error(o)
				}
			})
		})
	}
}

// All of the answer takes longer than it may stand still, and it does not.
func TestHTTP2AClientThatReadsSlowlyIsNotCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const step, size, idle = 1 << 10, 300 << 10, time.Minute
		body := strings.Repeat("x", size)
		client := connectPiped(t, newPipedFront(t, serve(sized(body)), idleFor(idle)), closedWindow)
		client.open(1, true, ordinary("GET", "/")...)
		begun := time.Now()
		var got bytes.Buffer
		for ended := false; !ended; {
			time.Sleep(time.Second) // of the bubble
			client.sent(client.WriteWindowUpdate(0, step))
			client.sent(client.WriteWindowUpdate(1, step))
			f := client.next(http2.FrameData, 1).(*http2.DataFrame)
			got.Write(f.Data())
			ended = f.StreamEnded()
		}
		if got.String() != body {
			t.Errorf("%d of %d bytes", got.Len(), size)
		}
		if took := time.Since(begun); took < 2*idle {
			t.Errorf("it took %v only", took)
		}
	})
}
