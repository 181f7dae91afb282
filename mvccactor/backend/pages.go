package backend

import "path/filepath"

// Badger reads and writes value logs through shared mappings of whole files, which stay
// mapped while the files exist. Each page that was read or written counts as resident memory
// of the process, so that a member would appear to use as much memory as its files. The
// kernel would reclaim the pages if memory were short, but monitoring and memory limits
// count them. So the store releases the pages whenever it has read or written
// mappedBytesMax. Their content stays in the page cache, and the next access to a page
// costs a minor fault.

// mappedBytesMax is the number of bytes of value logs that are read or written before their
// pages are released. It is small compared with the memory of a member, and large enough
// that releases are rare.
const mappedBytesMax = 32 << 20

// touch counts bytes that were read or written through a mapping, and reports whether the
// caller must release the pages.
func (s *store) touch(n int) bool { return s.touched.Add(int64(n)) >= mappedBytesMax }

// releasePages releases the pages of all value logs. The mappings stay. While a Reclaim
// runs, it does nothing, and a later call releases them.
//
// IMPORTANT: the caller must hold s.commit. Nothing creates, resizes or unmaps a value log
// while both s.commit and s.reclaiming are held, so the addresses that releaseMapped reads
// stay valid until it uses them.
func (s *store) releasePages() {
	if !s.reclaiming.TryLock() {
		return
	}
	defer s.reclaiming.Unlock()
	s.touched.Store(0)
	dir, err := filepath.Abs(s.cfg.Dir)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err == nil {
		err = releaseMapped(dir, valueLogExt)
	}
	if err != nil {
		s.cfg.Logger.Debugf("release pages of value logs: %v", err)
	}
}

// releaseRead is releasePages for readers. If a commit is in progress, it does nothing, and
// a later call releases the pages.
func (s *store) releaseRead() {
	if !s.commit.TryLock() {
		return
	}
	defer s.commit.Unlock()
	s.releasePages()
}
