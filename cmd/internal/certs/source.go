package certs

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/rs/zerolog"
)

// source is one or two files that are read together.
type source struct {
	what  string // in the log
	paths []string
	// trust: the files decide which certificates of others are accepted.
	trust bool
	// load reads the files into the material, or leaves the material unchanged.
	load func(*material) error

	// read is the state of the files when they were last read, and pending that of the last
	// poll, if it was another one.
	read, pending []stamp
	// failed is the error that was logged last; empty if the files could be used.
	failed string
}

// stamp is the state of a file; two that are equal mean that the file has not changed.
type stamp struct {
	info os.FileInfo // nil if err is set
	err  string
}

func stampOf(path string) stamp {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{err: err.Error()}
	}
	return stamp{info: info}
}

func (s stamp) equal(o stamp) bool {
	if s.info == nil || o.info == nil {
		return s.info == nil && o.info == nil && s.err == o.err
	}
	return os.SameFile(s.info, o.info) && s.info.Size() == o.info.Size() && s.info.ModTime().Equal(o.info.ModTime())
}

func (s *source) stamps() []stamp {
	all := make([]stamp, len(s.paths))
	for i, path := range s.paths {
		all[i] = stampOf(path)
	}
	return all
}

// begin reads the files for the first time.
func (s *source) begin(m *material) error {
	s.read = s.stamps()
	return s.load(m)
}

// poll reads the files into m if they have changed, and have not since the last poll. It
// reports whether m has changed.
func (s *source) poll(m *material, log zerolog.Logger) bool {
	now := s.stamps()
	if slices.EqualFunc(now, s.read, stamp.equal) {
		s.pending = nil
		return false
	}
	if !slices.EqualFunc(now, s.pending, stamp.equal) {
		s.pending = now // it may be written just now
		return false
	}
	s.read, s.pending = now, nil
	before := *m
	if err := s.load(m); err != nil {
		*m = before
		s.complain(err, log)
		return false
	}
	s.failed = ""
	log.Info().Str("what", s.what).Strs("files", s.paths).Msg("reloaded TLS files")
	return true
}

// complain logs an error once. A file that could not be read, unlike one with wrong content, is
// tried again: the reason may be outside of the file.
func (s *source) complain(err error, log zerolog.Logger) {
	if _, unreadable := errors.AsType[*fs.PathError](err); unreadable {
		s.pending, s.read = s.read, nil
	}
	if text := err.Error(); text != s.failed {
		s.failed = text
		log.Warn().Str("what", s.what).Str("files", strings.Join(s.paths, ", ")).Err(err).
			Msg("cannot use the new TLS files; those that were read before stay in use")
	}
}
