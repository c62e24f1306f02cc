// A registry that serves OCI archives, to whom can reach it, and takes nothing: what a client that insists on pulling
// its images needs (OCI distribution specification, "Pull").
//
//	registry ADDRESS NAME=ARCHIVE...
package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
)

type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
}

// What all archives hold: blobs by digest, and the manifest of each name, whatever the tag.
type registry struct {
	blobs     map[string][]byte
	manifests map[string]descriptor
}

func main() {
	if len(os.Args) < 3 {
		log.Fatal("usage: registry ADDRESS NAME=ARCHIVE...")
	}
	r := registry{blobs: map[string][]byte{}, manifests: map[string]descriptor{}}
	for _, argument := range os.Args[2:] {
		name, path, _ := strings.Cut(argument, "=")
		if err := r.add(name, path); err != nil {
			log.Fatalf("%s: %v", argument, err)
		}
	}
	log.Fatal(http.ListenAndServe(os.Args[1], r))
}

func (r registry) add(name, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	for archive := tar.NewReader(file); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			return err
		}
		if digest, ok := strings.CutPrefix(header.Name, "blobs/sha256/"); ok {
			r.blobs["sha256:"+digest] = content
		} else if header.Name == "index.json" {
			var index struct{ Manifests []descriptor }
			if err := json.Unmarshal(content, &index); err != nil {
				return err
			}
			if len(index.Manifests) > 0 {
				r.manifests[name] = index.Manifests[0]
			}
		}
	}
	if _, ok := r.blobs[r.manifests[name].Digest]; !ok {
		return fmt.Errorf("no image in it")
	}
	return nil
}

// ServeHTTP answers /v2/NAME/manifests/TAG and /v2/NAME/KIND/DIGEST.
func (r registry) ServeHTTP(answer http.ResponseWriter, request *http.Request) {
	parts := strings.Split(strings.TrimPrefix(request.URL.Path, "/v2/"), "/")
	if len(parts) != 3 {
		return
	}
	digest, mediaType := parts[2], "application/octet-stream"
	if parts[1] == "manifests" {
		manifest := r.manifests[parts[0]]
		digest, mediaType = manifest.Digest, manifest.MediaType
	}
	blob, ok := r.blobs[digest]
	if !ok {
		http.NotFound(answer, request)
		return
	}
	answer.Header().Set("Content-Type", mediaType)
	answer.Header().Set("Docker-Content-Digest", digest)
	answer.Header().Set("Content-Length", strconv.Itoa(len(blob)))
	if request.Method != http.MethodHead {
		_, _ = answer.Write(blob)
	}
}
