"""The workflows of other models open in the page, and it makes of them what the tests over HTTP run."""

from __future__ import annotations

import pytest
import workflow_checks
from workflow_checks import as_prompt, compare_with_page

pytestmark = [pytest.mark.server, pytest.mark.browser]


def test_the_page_reads_them_as_we_do(server, page):
    from browser import driver

    for name in workflow_checks.OTHER_MODELS:
        driver.drop_workflow(page, workflow_checks.WORKFLOWS / f"{name}.json")
        of_page = page.evaluate("async () => (await app.graphToPrompt()).output")
        compare_with_page(as_prompt(server, name), of_page, server.object_info())
