package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/troupe-db/troupe/walactor/wal"
)

func dumpCommand(args []string, stdout io.Writer) (err error) {
	flags, parse := newFlags(stdout)
	walDir := flags.String("wal-dir", "", "directory of the log, if it is not below the data directory")
	from := flags.Uint64("from", 0, "first index to print")
	to := flags.Uint64("to", math.MaxUint64, "last index to print")
	values := flags.Bool("values", false, "print values, not their sizes")
	path, err := parse(args)
	if err != nil {
		return err
	}
	d, err := openDataDir(path, *walDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	// Flush the records before the damage before the error is printed.
	out := bufio.NewWriter(stdout)
	defer func() { err = errors.Join(out.Flush(), err) }()
	p := &dumper{out: out, from: *from, to: *to, values: *values}
	if err := wal.Dump(heldFS{}, d.Log, p.record); err != nil {
		return err
	}
	return p.end(d)
}

// dumper prints records.
type dumper struct {
	out      io.Writer
	from, to uint64
	values   bool
	index    uint64 // of the last entry or mark
}

// record prints a record if the last entry or mark up to it is within the range of
// indexes.
func (p *dumper) record(r wal.Record) error {
	if r.Kind == wal.KindEntry || r.Kind == wal.KindMark {
		p.index = r.Index
	}
	if p.index < p.from || p.index > p.to {
		return nil
	}
	_, err := fmt.Fprintf(p.out, "%s %d batch=%d %s\n", r.File, r.Offset, r.BatchSeq, describeRecord(&r, p.values))
	return err
}

// end prints the torn tail, which the next start truncates.
func (p *dumper) end(d *dataDir) error {
	rep, err := wal.Verify(heldFS{}, d.Log)
	if err != nil || rep.Torn == nil {
		return err
	}
	_, err = fmt.Fprintf(p.out, "%s %d torn tail: %d bytes of an unfinished write, which a start truncates\n",
		rep.Torn.File, rep.Torn.Offset, rep.Torn.Bytes)
	return err
}
