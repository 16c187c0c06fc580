"""adamas.mindspore where there is no MindSpore."""

import subprocess
import sys


def test_the_import_says_what_to_install():
    program = """if True:
        import sys
        import adamas
        assert not any(name.startswith("mindspore") for name in sys.modules)
        sys.modules["mindspore"] = None  # as if there were none
        try:
            import adamas.mindspore
        except ImportError as error:
            assert 'pip install "adamas[mindspore]"' in str(error), error
        else:
            raise AssertionError("imported")
    """
    subprocess.run([sys.executable, "-c", program], check=True)
