"""What a Stor without a configuration says to whoever has started it."""

import pytest
from twisted.internet.address import IPv4Address

from stor.quickstart import data_configuration, greeting


@pytest.mark.parametrize("private", [True, False])
def test_the_password_is_shown_on_a_terminal_and_in_no_log(tmp_path, private):
    directory = tmp_path / "it's here"
    chosen = data_configuration(str(directory))
    (writer,) = chosen.credentials
    address = IPv4Address("TCP", "127.0.0.1", 8080)
    text = greeting(chosen, address, str(directory), private=private)
    assert (writer.password in text) == private
    assert ("$(cat " in text) != private
    lines = text.splitlines()
    assert lines[0] == lines[-1] == "", "it stands apart from the log around it"
    assert [line for line in lines if line.startswith("  curl http://127.0.0.1:8080/")] != []
