// Package scrape reads the HTTP endpoints of a server's client port.
package scrape

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// timeout bounds one request.
const timeout = 10 * time.Second

// Get requests url, accepting the given content type, and calls read with the
// body of the response. A status other than 200 is an error.
func Get(ctx context.Context, url, accept string, read func(io.Reader) error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("scrape: %w", err)
	}
	request.Header.Set("Accept", accept)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("scrape: %w", err)
	}
	defer func() { err = errors.Join(err, response.Body.Close()) }()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("scrape: %s: %s", url, response.Status)
	}
	return read(response.Body)
}

// Metric reads a gauge or counter without labels from the metrics of the server
// at endpoint.
func Metric(ctx context.Context, endpoint, name string) (value int64, err error) {
	err = Get(ctx, "http://"+endpoint+"/metrics", "text/plain", func(r io.Reader) (err error) {
		value, err = parseMetric(r, name)
		return err
	})
	return value, err
}

// Sum reads the sum of a counter over all its labels from the metrics of the server at
// endpoint; 0 if it has none yet.
func Sum(ctx context.Context, endpoint, name string) (sum int64, err error) {
	err = Get(ctx, "http://"+endpoint+"/metrics", "text/plain", func(r io.Reader) (err error) {
		sum, err = parseSum(r, name)
		return err
	})
	return sum, err
}

// parseSum reads Prometheus' text format.
func parseSum(r io.Reader, name string) (int64, error) {
	var sum float64
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		rest, found := strings.CutPrefix(lines.Text(), name)
		if !found || !strings.HasPrefix(rest, "{") && !strings.HasPrefix(rest, " ") {
			continue
		}
		v, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		if err != nil {
			return 0, fmt.Errorf("scrape: metric %s: %w", name, err)
		}
		sum += v
	}
	if err := lines.Err(); err != nil {
		return 0, fmt.Errorf("scrape: %w", err)
	}
	return int64(sum), nil
}

// parseMetric reads Prometheus' text format.
func parseMetric(r io.Reader, name string) (int64, error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		text, found := strings.CutPrefix(lines.Text(), name+" ")
		if !found {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
		if err != nil {
			return 0, fmt.Errorf("scrape: metric %s: %w", name, err)
		}
		return int64(v), nil
	}
	return 0, errors.Join(fmt.Errorf("scrape: no metric %s", name), lines.Err())
}
