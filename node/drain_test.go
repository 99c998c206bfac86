package node

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pyserve/pyserve/node/nodetest"
	fleetv1 "github.com/pyserve/pyserve/proto/pyserve/fleet/v1"
)

// keptConn is a connection of a client that would keep it.
type keptConn struct {
	net.Conn
	in *bufio.Reader
}

func keep(t *testing.T, n *Node) keptConn {
	t.Helper()
	c := nodetest.Dial(t, n.ListenAddress())
	return keptConn{c, bufio.NewReader(c)}
}

// ask sends a request, and says whether the answer ends the connection.
func (k keptConn) ask(t *testing.T) (closes bool) {
	t.Helper()
	io.WriteString(k, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	res, err := http.ReadResponse(k.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s %v", res.Status, err)
	}
	return res.Close
}

func TestADrainSendsClientsElsewhereAndTheNodeGoesOn(t *testing.T) {
	n := newNode(t, Options{})
	port, _ := upgrading(t)
	routes := func() *nodetest.Build { return nodetest.NewBuild().Route("/", saying(t, "a")).Route("/ws", port) }
	apply(t, n, 1, routes())
	kept, socket := keep(t, n), dialWebSocket(t, n, "/ws")
	echoes(t, socket)
	if kept.ask(t) {
		t.Fatal("a connection is closed although nothing drains")
	}
	if err := n.Drain(100 * time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if n.Ready() || !n.Draining() {
		t.Error("it drains, and is ready")
	}
	wantGoingAway(t, socket)
	if !kept.ask(t) {
		t.Error("the client may come again on its connection")
	}
	if !keep(t, n).ask(t) {
		t.Error("a client that came meanwhile may come again on its connection")
	}
	apply(t, n, 2, routes())
	if n.Applied().GetRevision() != 2 {
		t.Error("a node that drains takes no configuration")
	}
	if err := n.Undrain(); err != nil {
		t.Fatal(err)
	}
	if !n.Ready() || n.Draining() {
		t.Error("it no longer drains, and is not ready")
	}
	if keep(t, n).ask(t) {
		t.Error("clients are sent away by a node that no longer drains")
	}
	echoes(t, dialWebSocket(t, n, "/ws"))
}

func TestUndrainSavesTunnelsWhoseTurnHasNotCome(t *testing.T) {
	n := newNode(t, Options{})
	port, _ := upgrading(t)
	apply(t, n, 1, nodetest.NewBuild().Route("/ws", port))
	for range 3 {
		echoes(t, dialWebSocket(t, n, "/ws"))
	}
	if err := n.Drain(time.Hour); err != nil {
		t.Fatal(err)
	}
	nodetest.Eventually(t, "the first has gone", func() bool { return n.Load().GetTunnels() == 2 })
	if err := n.Undrain(); err != nil {
		t.Fatal(err)
	}
	echoes(t, dialWebSocket(t, n, "/ws"))
	if tunnels := n.Load().GetTunnels(); tunnels != 3 {
		t.Errorf("%d tunnels, want 3", tunnels)
	}
}

// Two tunnels take four of the descriptors, which are more than enough; and where the others have no room, a drain ends none before
// its last tenth, which for two is the second.
func TestADrainGoesByTheRoomOfTheOtherNodes(t *testing.T) {
	asked := make(chan struct{}, 1)
	n := newNode(t, Options{PeerRoom: func() int {
		select {
		case asked <- struct{}{}:
		default:
		}
		return 0
	}})
	if n.Room() != 0 {
		t.Errorf("a node that serves nothing has room for %d tunnels", n.Room())
	}
	port, _ := upgrading(t)
	apply(t, n, 1, nodetest.NewBuild().Route("/ws", port))
	empty := n.Room()
	for range 2 {
		echoes(t, dialWebSocket(t, n, "/ws"))
	}
	nodetest.Eventually(t, "room for two tunnels less", func() bool { return n.Room() <= empty-2 })
	if n.Load().GetNoRoom() {
		t.Error("a node that does not drain has tunnels that wait for room")
	}
	if err := n.Drain(time.Hour); err != nil {
		t.Fatal(err)
	}
	<-asked
	if load := n.Load(); load.GetTunnels() != 2 || !load.GetNoRoom() {
		t.Errorf("%v is under way, want both tunnels, for want of room", load)
	}
	if err := n.Drain(0); err != nil {
		t.Fatal(err)
	}
	nodetest.Eventually(t, "the deadline ends them all the same", func() bool { return n.Load().GetTunnels() == 0 })
}

func TestHTTP2ClientsAreSentAwayAndComeBack(t *testing.T) {
	n := newNode(t, Options{})
	apply(t, n, 1, nodetest.NewBuild().Route("/", saying(t, "a")))
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	dialled := make(chan net.Conn, 8)
	transport := &http.Transport{Protocols: protocols, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		dialled <- c
		return c, err
	}}
	defer transport.CloseIdleConnections()
	c := &http.Client{Transport: transport}
	ask := func() {
		t.Helper()
		if _, err := fetch(c, "http://"+n.ListenAddress()+"/"); err != nil {
			t.Fatal(err)
		}
	}
	ask()
	ask()
	if len(dialled) != 1 {
		t.Fatalf("%d connections for two requests", len(dialled))
	}
	for range 2 { // a second time works as the first
		if err := n.Drain(0); err != nil {
			t.Fatal(err)
		}
		nodetest.Eventually(t, "the idle connection is given up", func() bool {
			before := len(dialled)
			ask()
			return len(dialled) > before
		})
		if err := n.Undrain(); err != nil {
			t.Fatal(err)
		}
		nodetest.Eventually(t, "a connection is kept again", func() bool {
			before := len(dialled)
			ask()
			ask()
			return len(dialled) <= before+1
		})
		for len(dialled) > 0 {
			<-dialled
		}
	}
}

func TestAStopServesWhoStillComes(t *testing.T) {
	n := newNode(t, Options{})
	n.lameDuck, n.quiet = time.Hour, time.Hour
	apply(t, n, 1, nodetest.NewBuild().Route("/", saying(t, "a")))
	keep(t, n).ask(t) // there are clients
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- n.Stop(ctx) }()
	nodetest.Eventually(t, "it says that it goes", n.Draining)
	for range 3 {
		if !keep(t, n).ask(t) {
			t.Error("a client that came meanwhile may come again on its connection")
		}
	}
	cancel()
	<-stopped // with an error if the last connection's end was not seen yet
}

func TestAStopDoesNotWaitWhereNobodyComes(t *testing.T) {
	n := newNode(t, Options{})
	n.lameDuck, n.quiet = time.Hour, time.Hour
	apply(t, n, 1, nodetest.NewBuild().Route("/", saying(t, "a")))
	if err := n.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestAStopIsNotTakenBack(t *testing.T) {
	n := newNode(t, Options{})
	if err := stop(n, time.Minute); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{"Drain": n.Drain(0), "Undrain": n.Undrain()} {
		if !errors.Is(err, ErrStopping) {
			t.Errorf("%s: %v", what, err)
		}
	}
	answer := n.Answer(&fleetv1.Question{Id: 7, Drain: &fleetv1.Drain{What: fleetv1.Drain_WHAT_END}})
	if answer.GetId() != 7 || answer.GetLoad() != nil || answer.GetReason() != ErrStopping.Error() {
		t.Errorf("the answer is %v", answer)
	}
}

func TestControlAsksForADrain(t *testing.T) {
	n := newNode(t, Options{})
	port, _ := upgrading(t)
	apply(t, n, 1, nodetest.NewBuild().Route("/ws", port))
	socket := dialWebSocket(t, n, "/ws")
	echoes(t, socket)
	ask := func(what fleetv1.Drain_What) *fleetv1.Load {
		t.Helper()
		answer := n.Answer(&fleetv1.Question{Id: 1, Drain: &fleetv1.Drain{What: what, Over: durationpb.New(0)}})
		if answer.GetLoad() == nil {
			t.Fatalf("the answer is %v", answer)
		}
		return answer.GetLoad()
	}
	if load := ask(fleetv1.Drain_WHAT_ASK); load.GetTunnels() != 1 || n.Draining() {
		t.Errorf("asked only: %v, draining: %t", load, n.Draining())
	}
	if sample := n.Answer(&fleetv1.Question{Id: 2, Take: &fleetv1.TakeSample{Routes: 5}}).GetSample(); sample.GetLoad().GetTunnels() != 1 ||
		sample.GetAll().GetRequests() != 1 || len(sample.GetRoutes()) != 1 || sample.GetRoutes()[0].GetRoute() == "" || sample.GetConnectionsTotal() != 1 {
		t.Errorf("the sample is %v", sample)
	}
	ask(fleetv1.Drain_WHAT_BEGIN)
	wantGoingAway(t, socket)
	nodetest.Eventually(t, "nothing is left", func() bool { return ask(fleetv1.Drain_WHAT_ASK).GetTunnels() == 0 })
	ask(fleetv1.Drain_WHAT_END)
	if !n.Ready() {
		t.Error("it still drains")
	}
}
