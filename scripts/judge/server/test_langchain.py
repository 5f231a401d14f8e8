"""langchain's standard integration tests of chat models, against the scripted server."""

import os

import pytest
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestScripted(ChatModelIntegrationTests):
    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        return {
            "model": "scripted",
            "base_url": os.environ["Q35_SERVER"] + "/v1",
            "api_key": "test",
            "temperature": 0,
            "extra_body": {"chat_template_kwargs": {"enable_thinking": False}},
        }

    @property
    def supports_image_inputs(self):
        return False
