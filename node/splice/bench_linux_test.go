package splice

import (
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// processTime is the CPU time of the process so far, in nanoseconds.
func processTime(b *testing.B) int64 {
	var use unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &use); err != nil {
		b.Fatal(err)
	}
	return use.Utime.Nano() + use.Stime.Nano()
}

// BenchmarkBody moves bodies one after the other. cpu-ns/op counts both ends, which are the same for both ways of moving.
func BenchmarkBody(b *testing.B) {
	copyBuffer := make([]byte, 36<<10) // forward's
	for _, size := range []int{16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 1 << 20, 16 << 20} {
		b.Run(fmt.Sprintf("%dKiB/copy", size>>10), func(b *testing.B) {
			benchmarkBody(b, size, func(dst, src *net.TCPConn) error { return copyBody(dst, src, size, copyBuffer) })
		})
		b.Run(fmt.Sprintf("%dKiB/splice", size>>10), func(b *testing.B) {
			benchmarkBody(b, size, func(dst, src *net.TCPConn) error { return spliceBody(dst, src, size) })
		})
	}
	CloseIdle()
}

func copyBody(dst, src *net.TCPConn, size int, buffer []byte) error {
	for size > 0 {
		n, err := src.Read(buffer)
		if err != nil {
			return err
		}
		if _, err := dst.Write(buffer[:n]); err != nil {
			return err
		}
		size -= n
	}
	return nil
}

func spliceBody(dst, src *net.TCPConn, size int) error {
	m, err := Start(dst, src)
	if err != nil {
		return err
	}
	defer m.Stop()
	for size > 0 {
		n, err := m.Fill(int64(size))
		if err != nil {
			return err
		}
		size -= int(n)
		for m.Held() > 0 {
			if _, err := m.Drain(); err != nil {
				return err
			}
		}
	}
	return nil
}

func benchmarkBody(b *testing.B, size int, move func(dst, src *net.TCPConn) error) {
	r := newRelayed(b)
	var ends sync.WaitGroup
	next := make(chan struct{})
	ends.Go(func() {
		body := make([]byte, size)
		for range next {
			if _, err := r.source.Write(body); err != nil {
				b.Error(err)
			}
		}
	})
	arrived := make(chan struct{})
	ends.Go(func() {
		body := make([]byte, 256<<10)
		for range b.N {
			for left := size; left > 0; {
				n, err := r.sink.Read(body[:min(left, len(body))])
				if err != nil && err != io.EOF {
					b.Error(err)
					return
				}
				left -= n
			}
			arrived <- struct{}{}
		}
	})
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	began := processTime(b)
	for range b.N {
		next <- struct{}{}
		if err := move(r.dst, r.src); err != nil {
			b.Fatal(err)
		}
		<-arrived
	}
	b.ReportMetric(float64(processTime(b)-began)/float64(b.N), "cpu-ns/op")
	b.StopTimer()
	close(next)
	ends.Wait()
}
