"""The pytest suite that judges any kernel: `pytest --pyargs moeracle.properties.suite --kernel TARGET`."""
