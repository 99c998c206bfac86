package api

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	"google.golang.org/grpc"

	"github.com/pyserve/pyserve/control"
	operatorv1 "github.com/pyserve/pyserve/proto/pyserve/operator/v1"
)

// Backup streams what control stores.
func (a *access) Backup(_ *operatorv1.BackupRequest, stream grpc.ServerStreamingServer[operatorv1.BackupResponse]) error {
	w := bufio.NewWriterSize(backupWriter{stream}, partBytes)
	if err := a.control.Backup(stream.Context(), w); err != nil {
		return err
	}
	return w.Flush()
}

type backupWriter struct {
	stream grpc.ServerStreamingServer[operatorv1.BackupResponse]
}

func (w backupWriter) Write(p []byte) (int, error) {
	for sent := 0; sent < len(p); {
		part := p[sent:min(sent+partBytes, len(p))]
		if err := w.stream.Send(&operatorv1.BackupResponse{Data: part}); err != nil {
			return sent, err
		}
		sent += len(part)
	}
	return len(p), nil
}

// Restore receives a backup, says what it would do, and does it once that is confirmed.
func (a *access) Restore(stream grpc.BidiStreamingServer[operatorv1.RestoreRequest, operatorv1.RestoreResponse]) error {
	file, err := a.control.Spool()
	if err != nil {
		return err
	}
	defer file.Close()
	size, err := receiveBackup(stream, file)
	if err != nil {
		return err
	}
	ctx := stream.Context()
	restoration, plan, err := a.control.ReadBackup(ctx, file, size)
	if err != nil {
		return err
	}
	if err := stream.Send(&operatorv1.RestoreResponse{Message: &operatorv1.RestoreResponse_Plan{Plan: plan}}); err != nil {
		return err
	}
	m, err := stream.Recv()
	switch {
	case errors.Is(err, io.EOF):
		return nil // it was only looked at
	case err != nil:
		return err
	case m.GetConfirmation() == nil:
		return fmt.Errorf("after the plan comes its confirmation: %w", errMalformed)
	}
	result, err := a.control.Restore(ctx, restoration)
	if err != nil {
		return err
	}
	return stream.Send(&operatorv1.RestoreResponse{Message: &operatorv1.RestoreResponse_Result{Result: result}})
}

func receiveBackup(stream grpc.BidiStreamingServer[operatorv1.RestoreRequest, operatorv1.RestoreResponse], file *os.File) (size int64, err error) {
	for {
		m, err := stream.Recv()
		if err != nil {
			return 0, err
		}
		part := m.GetPart()
		if part == nil {
			return 0, fmt.Errorf("a restore begins with the backup: %w", errMalformed)
		}
		if size += int64(len(part.GetData())); size > control.MaxBackupBytes {
			return 0, fmt.Errorf("a backup has at most %d MiB: %w", control.MaxBackupBytes>>20, errTooLarge)
		}
		if _, err := file.Write(part.GetData()); err != nil {
			return 0, fmt.Errorf("keep the backup: %w", err)
		}
		if part.GetLast() {
			return size, nil
		}
	}
}
