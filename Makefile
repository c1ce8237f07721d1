# make run    a Stor with its disks under ./data, on 127.0.0.1:8080, or with PORT=9000 there
# make check  lint, types and unit tests, in a few minutes; make test everything that CI checks;
#   make soak the long forms; make python-test the unit tests on Python 3.14
# make deb    the Debian packages, in dist/; make boot-test and make image-test try it and the image
# make format formats the code and writes CONTRIBUTING's list of rooms; make lock updates the exact
#   versions; make clean removes the .venv

SHELL = /bin/bash
PYTHON ?= python3
VENV ?= .venv
PORT ?= 8080
SWIFT_VENV ?= .venv-swift
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check --quiet
# Tests that run with several processes as well as with one.
WITH_WORKERS = $(addprefix tests/integration/test_,crash.py full_disk.py many_at_once.py \
  mounts.py reloading.py s3_writing.py stopping.py)
PYTEST = $(VENV)/bin/python -m pytest
# One process of pytest's more than there are cores, as tests wait for disks.
SIDE_BY_SIDE = $(PYTEST) --numprocesses=$(shell expr $$(nproc) + 1) -m 'not alone'
# A test that fails beside others gets one more run, by itself: on a busy machine a deadline may pass
# for want of processor time. The first failure stays in the output.
AGAIN = { echo "Once more, by themselves, those that failed:"; \
  $(1) $(PYTEST) --last-failed --last-failed-no-failures=none $(2); }
COMPILE = $(VENV)/bin/pip-compile --quiet --upgrade --generate-hashes --allow-unsafe \
  --strip-extras --no-emit-index-url --no-emit-find-links

.DELETE_ON_ERROR:
.PHONY: run check test soak lint format lock bench deb boot-test image-test python-test clean

run: $(VENV)/installed
	$(VENV)/bin/twistd -n --pidfile= stor --data ./data --listen tcp:$(PORT):interface=127.0.0.1

check: lint
	$(PYTEST) --numprocesses=auto --dist=worksteal --ignore=tests/integration \
	  || $(call AGAIN,,--ignore=tests/integration)

test: check $(SWIFT_VENV)/installed
	@./.ci/packages curl git bindfs mkfs.ext4 mkfs.xfs openssl faketime memcached haproxy chromium \
	  wget aria2c http promtool ceph ceph-authtool ceph-mon ceph-osd monmaptool radosgw
	$(SIDE_BY_SIDE) tests/integration || $(call AGAIN,,tests/integration)
	STOR_TEST_WORKERS=3 $(SIDE_BY_SIDE) $(WITH_WORKERS) \
	  || $(call AGAIN,STOR_TEST_WORKERS=3,$(WITH_WORKERS))
	$(PYTEST) -m alone tests/integration || $(call AGAIN,,-m alone tests/integration)
	STOR_TEST_WORKERS=3 $(PYTEST) -m alone $(WITH_WORKERS) \
	  || $(call AGAIN,STOR_TEST_WORKERS=3,-m alone $(WITH_WORKERS))

# The long forms, such as 500 crashes, and the proof that the tests notice every guard that is taken
# out. Hours, not minutes.
soak: $(VENV)/installed-test $(SWIFT_VENV)/installed
	$(VENV)/bin/python -m tests.mutations
	STOR_SOAK=1 $(PYTEST)

lint: $(VENV)/installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check --quiet .
	$(VENV)/bin/mypy -p stor -p bench

format: $(VENV)/installed-test
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/python -m tests.test_layers

lock: $(VENV)/installed-test
	$(PIP) install pip-tools
	cd $(CURDIR) && for extra in "" "--extra=test"; do \
	  $(COMPILE) $$extra --output-file=requirements$${extra:+-test}.txt setup.py || exit 1; done
	cd $(CURDIR) && $(COMPILE) --output-file=tests/engines/swift-requirements.txt \
	  tests/engines/swift-requirements.in

bench: $(VENV)/installed-test
	@PATH=$$PATH:/usr/sbin ./.ci/packages nginx wrk docker-registry rclone
	$(VENV)/bin/python -m bench

# Built from a copy, because dpkg-buildpackage writes beside its sources.
deb:
	@./.ci/packages git lintian debian/control
	rm -rf build/deb dist && mkdir -p build/deb/stor dist
	git ls-files -z --cached --others --exclude-standard \
	  | xargs -0 cp --parents --preserve=mode,timestamps --target-directory=build/deb/stor
	cd build/deb/stor && dpkg-buildpackage --build=full --no-sign
	lintian --allow-root --fail-on=error,warning build/deb/*.changes
	mv build/deb/*.deb dist

# Installs the package in a Debian 12 that is booted for it. As root.
boot-test: deb
	tests/boot/run dist

# In a Debian that has this Python, made for it. As root.
python-test:
	tests/python/run 3.14

# Builds and runs the image of the Dockerfile, on a base that is made here. As root.
image-test:
	tests/image/run

clean:
	rm -rf $(VENV) $(SWIFT_VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	@./.ci/packages $(PYTHON)
	$(PYTHON) -m venv $(VENV)

# editable_mode=compat puts the checkout itself on the path, where Twisted looks for its plugins.
$(VENV)/installed: $(VENV)/bin/python setup.py requirements.txt
	@echo "Installing Stor into $(VENV) ..."
	$(PIP) install --require-hashes -r requirements.txt
	$(PIP) install --no-deps --config-settings editable_mode=compat -e . 2>$(VENV)/install.log \
	  || { cat $(VENV)/install.log >&2; exit 1; }
	@touch $@

$(VENV)/installed-test: $(VENV)/installed requirements-test.txt
	@echo "Installing what the tests need into $(VENV) ..."
	$(PIP) install --require-hashes -r requirements-test.txt
	@touch $@

# OpenStack Swift, for the tests: an S3 engine that needs other package versions than Stor.
$(SWIFT_VENV)/installed: tests/engines/swift-requirements.txt
	@./.ci/packages $(PYTHON)
	@echo "Installing Swift into $(SWIFT_VENV) ..."
	$(PYTHON) -m venv --clear $(SWIFT_VENV)
	$(SWIFT_VENV)/bin/python -m pip --disable-pip-version-check --quiet install \
	  --require-hashes -r tests/engines/swift-requirements.txt
	@touch $@
