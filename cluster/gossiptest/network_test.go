package gossiptest

import (
	"io"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func pair(t *testing.T, n *Network) (a, b *Transport) {
	t.Helper()
	hosts := make([]*Transport, 2)
	for i, address := range []string{"10.0.0.1:7946", "10.0.0.2:7946"} {
		host, err := n.Listen(address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = host.Shutdown() })
		hosts[i] = host
	}
	return hosts[0], hosts[1]
}

func send(t *testing.T, from, to *Transport) {
	t.Helper()
	if _, err := from.WriteTo([]byte("x"), to.Address()); err != nil {
		t.Fatal(err)
	}
}

func TestPacketsTakeTheLatency(t *testing.T) {
	Run(t, func(t *testing.T) {
		n := NewNetwork(1)
		a, b := pair(t, n)
		n.SetLatency(time.Second)
		start := time.Now()
		send(t, a, b)
		packet := <-b.PacketCh()
		if took := time.Since(start); took != time.Second || packet.From.String() != a.Address() {
			t.Errorf("a packet from %s took %s", packet.From, took)
		}
	})
}

func TestLossLosesAboutThatManyPackets(t *testing.T) {
	n := NewNetwork(1)
	a, b := pair(t, n)
	n.SetLoss(0.5)
	for range 1000 {
		send(t, a, b)
	}
	if got := len(b.packets); got < 400 || got > 600 {
		t.Errorf("%d of 1000 packets arrived", got)
	}
}

func TestAPartitionLosesPacketsAndSilencesDials(t *testing.T) {
	Run(t, func(t *testing.T) {
		n := NewNetwork(1)
		a, b := pair(t, n)
		n.Partition(a.Address())
		send(t, a, b)
		start := time.Now()
		if _, err := a.DialTimeout(b.Address(), time.Minute); err == nil || time.Since(start) != time.Minute {
			t.Errorf("dial: %v after %s", err, time.Since(start))
		}
		n.Partition(b.Address())
		send(t, b, a)
		n.Partition(a.Address(), b.Address())
		send(t, b, a)
		n.Heal()
		send(t, a, b)
		if len(a.packets) != 1 || len(b.packets) != 1 {
			t.Errorf("%d and %d packets arrived, want 1 and 1", len(a.packets), len(b.packets))
		}
	})
}

func TestStreamsCarryBothWays(t *testing.T) {
	n := NewNetwork(1)
	a, b := pair(t, n)
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn := <-b.StreamCh()
		defer conn.Close()
		_, _ = io.CopyN(conn, conn, 1)
	}()
	conn, err := a.DialTimeout(b.Address(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if echo, err := io.ReadAll(conn); err != nil || string(echo) != "x" {
		t.Errorf("echo %q, %v", echo, err)
	}
	<-done
}

func TestWhatIsSentIsCounted(t *testing.T) {
	n := NewNetwork(1)
	a, b := pair(t, n)
	n.SetLoss(1)
	send(t, a, b)
	before := n.Traffic()
	send(t, a, b)
	send(t, b, a)
	go func() {
		conn := <-b.StreamCh()
		defer conn.Close()
		_, _ = io.CopyN(conn, conn, 3)
	}()
	conn, err := a.DialTimeout(b.Address(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("abc")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(conn); err != nil {
		t.Fatal(err)
	}
	if got, want := n.Traffic().Since(before), (Traffic{Packets: 2, PacketBytes: 2, Streams: 1, StreamBytes: 6}); got != want || got.Bytes() != 8 {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestAStoppedHostBlocksNobody(t *testing.T) {
	n := NewNetwork(1)
	a, b := pair(t, n)
	for range 2 * queue {
		send(t, a, b)
	}
	if err := b.Shutdown(); err != nil {
		t.Fatal(err)
	}
	send(t, a, b)
	if _, err := a.DialTimeout(b.Address(), time.Minute); err == nil {
		t.Error("a stopped host takes streams")
	}
	if _, err := n.Listen(b.Address()); err != nil {
		t.Errorf("its address is not free: %v", err)
	}
}

func TestListenRefuses(t *testing.T) {
	n := NewNetwork(1)
	a, _ := pair(t, n)
	for _, address := range []string{a.Address(), "10.0.0.3", "host:1"} {
		if _, err := n.Listen(address); err == nil {
			t.Errorf("Listen(%q) gives no error", address)
		}
	}
}
