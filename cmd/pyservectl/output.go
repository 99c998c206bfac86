package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"gopkg.in/yaml.v3"
)

// structured says whether the output is for programs.
func (s *settings) structured() bool { return s.output == "json" || s.output == "yaml" }

// print writes a value for programs. YAML has the same keys in the same order as JSON.
func (s *settings) print(to io.Writer, value any) error {
	data, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the output: %w", err)
	}
	if s.output == "yaml" {
		var node yaml.Node
		if err := yaml.Unmarshal(data, &node); err != nil {
			return fmt.Errorf("encode the output: %w", err)
		}
		blockStyle(&node)
		if data, err = yaml.Marshal(&node); err != nil {
			return fmt.Errorf("encode the output: %w", err)
		}
		_, err = to.Write(data)
		return err
	}
	_, err = fmt.Fprintf(to, "%s\n", data)
	return err
}

// blockStyle takes JSON's braces and quotes off.
func blockStyle(n *yaml.Node) {
	n.Style = 0
	for _, child := range n.Content {
		blockStyle(child)
	}
}

// printable takes off what would break a line or steer a terminal: notes and reasons quote what nodes and backends say.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
}

// table prints rows under a head, columns aligned. Cells are for people: an empty one shows as "-", but for the last.
func table(to io.Writer, head []string, rows [][]string) error {
	var out bytes.Buffer
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, strings.Join(head, "\t"))
	for _, row := range rows {
		for i, cell := range row {
			row[i] = printable(cell)
			if cell == "" && i < len(row)-1 {
				row[i] = "-"
			}
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	// What is padded before an empty last cell is taken off here: a row that ended sooner would not align.
	trimmed := make([]byte, 0, out.Len())
	for line := range bytes.Lines(out.Bytes()) {
		trimmed = append(append(trimmed, bytes.TrimRight(line, " \n")...), '\n')
	}
	_, err := to.Write(trimmed)
	return err
}

// age is how long ago a moment was, in two units at most.
func age(since time.Time) string {
	if since.IsZero() {
		return ""
	}
	d := time.Since(since)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
}

// isTerminal says whether people watch this output, and whether it may be redrawn.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
}

// painter colours words, where the output is a terminal and NO_COLOR is not set (no-color.org).
type painter bool

func newPainter(w io.Writer) painter { return painter(isTerminal(w) && os.Getenv("NO_COLOR") == "") }

const (
	green  = "\x1b[32m"
	red    = "\x1b[31m"
	yellow = "\x1b[33m"
)

func (p painter) paint(colour, text string) string {
	if !p {
		return text
	}
	return colour + text + "\x1b[0m"
}

func short(digest string) string { return digest[:min(len(digest), 12)] }
