package backend

import "path/filepath"

// Badger reads and writes value logs through shared mappings of whole files, which
// stay mapped for as long as the files exist. Each page that was touched once counts
// as memory of the process: after a load of 1 GiB, 1 GiB. The kernel would take the
// pages back when memory is short, but everything that looks at the process, limits
// included, sees a member as large as its disk. So the store unmaps the pages itself
// whenever enough of them were touched. What they held stays in the page cache; a
// page that is needed again costs a minor fault.

// mappedBytesMax is how many bytes of value logs are touched before their pages are
// released: small beside the rest of a member, and enough that a release, which
// takes some 100 µs, is not noticed.
const mappedBytesMax = 32 << 20

// touch counts bytes that were read or written through a mapping, and reports
// whether it is time to release the pages.
func (s *store) touch(n int) bool { return s.touched.Add(int64(n)) >= mappedBytesMax }

// releasePages unmaps the pages of all value logs. The mappings themselves stay.
//
// IMPORTANT: the caller holds commit. Together with reclaiming that excludes
// whatever creates, resizes or unmaps a value log: the addresses that are read here
// cannot come to mean something else before they are used. While a Reclaim runs,
// nothing is released; the next call does it.
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

// releaseRead is releasePages for readers: if a commit is under way, the commit
// does it.
func (s *store) releaseRead() {
	if !s.commit.TryLock() {
		return
	}
	defer s.commit.Unlock()
	s.releasePages()
}
