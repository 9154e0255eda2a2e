@echo off
rem Install the course from this folder alone, the first time, and open JupyterLab on your copy of the notebooks.
rem   start.bat            install if need be, then open JupyterLab
rem   start.bat install    install only
rem Everything goes to %FTKIT_HOME% (default: ftkit in your home folder), so this folder may be read-only and shared.
setlocal
cd /d "%~dp0"
if not defined FTKIT_HOME set "FTKIT_HOME=%USERPROFILE%\ftkit"
if exist "%FTKIT_HOME%\venv\ready.txt" goto copy
py -@PYTHON@ -m venv --clear "%FTKIT_HOME%\venv"
if errorlevel 1 (
    echo This folder is for Python @PYTHON@: install it, with its launcher py, and start again.
    exit /b 1
)
"%FTKIT_HOME%\venv\Scripts\python" -m pip install -q --no-index --find-links wheels --require-hashes -r requirements.txt
if errorlevel 1 exit /b 1
echo ready > "%FTKIT_HOME%\venv\ready.txt"
:copy
if not exist "%FTKIT_HOME%\notebooks" mkdir "%FTKIT_HOME%\notebooks"
for %%f in (notebooks\*) do if not exist "%FTKIT_HOME%\notebooks\%%~nxf" copy "%%f" "%FTKIT_HOME%\notebooks" >nul
if "%~1"=="install" exit /b 0
"%FTKIT_HOME%\venv\Scripts\ftkit" lab "%FTKIT_HOME%\notebooks" %*
